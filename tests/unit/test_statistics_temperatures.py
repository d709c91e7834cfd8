"""A temperature of each row: the bits of the number, whatever the temperatures of other rows.

Shapes: N rows, V vocabulary.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import (
    STATISTICS,
    Bonus,
    NoiseKey,
    TokenStatistics,
    categorical,
    tiles,
    token_statistics,
    token_statistics_reference,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = sorted(STATISTICS)
FILTERS: tuple[dict[str, Any], ...] = (
    {}, {"top_k": 1}, {"top_k": 5}, {"top_p": 0.8123}, {"top_p": 1.0}, {"top_k": 20, "top_p": 0.9},
    {"min_p": 0.0513}, {"top_k": 20, "min_p": 0.3017},
)  # fmt: skip
# Of 0.55, 0.85 and 1.7 the inverse is not that of the float32 next to them.
TEMPERATURES = (1e-35, 1e-30, 0.1, 0.55, 0.85, 1.0, 1.7, 5.0, 1e30, 1e35)
ROWS = 7


def make_key(num_rows: int) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(count << 40, count, count * 3, count % 2)


def random_logits(num_rows: int, vocabulary: int) -> Tensor:
    source = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(num_rows, vocabulary, generator=source)
    logits[0, ::3] = -torch.inf
    return logits


def each_of(*temperatures: float) -> Tensor:
    return torch.tensor(temperatures, dtype=torch.float32)


def same(found: TokenStatistics, expected: TokenStatistics, rows: slice = slice(None)) -> None:
    for name in ("sampled", "maximum", *NAMES, "top_tokens", "top_probabilities"):
        value, truth = getattr(found, name), getattr(expected, name)
        assert (value is None) == (truth is None)
        assert truth is None or torch.equal(value, truth[rows]), name


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_row_has_the_bits_that_a_number_gives_it(data: st.DataObject) -> None:
    """Whether all rows have that temperature or each its own, and however rows are cut up."""
    vocabulary = data.draw(st.sampled_from((1, 5, 1024, 2500)))
    logits = random_logits(ROWS, vocabulary).to(data.draw(st.sampled_from(DTYPES)))
    index = torch.arange(ROWS)
    key, tokens = make_key(ROWS), index % vocabulary
    scale = 0.3 + index.float() if data.draw(st.booleans()) else None
    bonus = None
    if data.draw(st.booleans()):
        bonus = Bonus(tokens[:, None], torch.full((ROWS, 1), 1.5))
    options: dict[str, Any] = {
        **data.draw(st.sampled_from(FILTERS)),
        "law": data.draw(st.sampled_from(("model", "sampling"))),
        "scale_statistics": data.draw(st.booleans()),
        "top": data.draw(st.sampled_from((0, 3))),
        "suppressed": torch.arange(vocabulary) % 5 == 1,
    }
    wanted = data.draw(st.sampled_from((STATISTICS, ("sampled_log_probability",), ())))
    every = data.draw(st.lists(st.sampled_from(TEMPERATURES), min_size=ROWS, max_size=ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_BLOCK", data.draw(st.sampled_from((1, 3000, 1 << 17))))
        mixed = token_statistics(
            logits, wanted, each_of(*every), key=key, tokens=tokens, scale=scale, bonus=bonus,
            **options,
        )  # fmt: skip
    for row, temperature in enumerate(every):
        one = slice(row, row + 1)
        part: dict[str, Any] = {
            "key": NoiseKey(key.seeds[one], key.row[one], key.position[one], key.draw[one]),
            "tokens": tokens[one],
            "scale": None if scale is None else scale[one],
            "bonus": None if bonus is None else Bonus(bonus.tokens[one], bonus.values[one]),
        }
        alone = token_statistics(logits[one], wanted, temperature, **part, **options)
        same(alone, mixed, one)
    equal = token_statistics(
        logits, wanted, each_of(*every[:1] * ROWS), key=key, tokens=tokens, scale=scale,
        bonus=bonus, **options,
    )  # fmt: skip
    number = token_statistics(
        logits, wanted, every[0], key=key, tokens=tokens, scale=scale, bonus=bonus, **options
    )
    same(equal, number)


@pytest.mark.parametrize("law", ["model", "sampling"])
@pytest.mark.parametrize("filters", [FILTERS[0], FILTERS[5]])
def test_the_reference_agrees(law: str, filters: dict[str, Any]) -> None:
    logits, each = random_logits(20, 1500), torch.logspace(-1, 0.7, 20)
    options: dict[str, Any] = {
        "key": make_key(20), "tokens": torch.arange(20), "law": law, "top": 3, **filters,
        "scale": 1 + torch.arange(20) / 20, "scale_statistics": False,
    }  # fmt: skip
    ours = token_statistics(logits, STATISTICS, each, **options)
    exact = token_statistics_reference(logits, STATISTICS, each, **options)
    assert torch.equal(ours.sampled, exact.sampled)
    for name in NAMES:
        torch.testing.assert_close(
            getattr(ours, name).double(), getattr(exact, name), rtol=2e-5, atol=1e-6
        )


def test_categorical_takes_them() -> None:
    logits, each, key = random_logits(4, 300), each_of(0.1, 0.7, 1.0, 4.0), make_key(4)
    drawn, probability = categorical(logits, temperature=each, key=key)
    found = token_statistics(logits, ("confidence",), each, key=key)
    assert torch.equal(drawn, found.sampled)
    assert found.confidence is not None
    assert torch.equal(probability, found.confidence)


def test_they_may_be_learned() -> None:
    """Nothing of what is said of a row depends on them by a gradient."""
    each = each_of(0.5, 2.0).requires_grad_()
    for scale in (None, torch.ones(2, requires_grad=True)):
        found = token_statistics(
            random_logits(2, 90), STATISTICS, each, 9, 0.9, make_key(2), law="sampling",
            tokens=torch.zeros(2, dtype=torch.int64), scale=scale,
        )  # fmt: skip
        assert not any(getattr(found, name).requires_grad for name in NAMES)


@pytest.mark.parametrize("function", [token_statistics, token_statistics_reference])
@pytest.mark.parametrize(
    ("each", "said"),
    [
        (each_of(1.0, 0.0), "temperature of each row must be finite and above 0, got 0.0"),
        (each_of(-1.0, 1.0), "temperature of each row must be finite and above 0, got -1.0"),
        (each_of(1.0, torch.inf), "temperature of each row must be finite and above 0, got inf"),
        (each_of(torch.nan, 1.0), "temperature of each row must be finite and above 0, got nan"),
        (torch.ones(2).double(), r"temperature must be torch.float32 of .*, got torch.float64"),
        (each_of(1.0), r"temperature must be torch.float32 of shape \[2\], got torch.float32 \[1"),
        (each_of(1.0, 1.0)[:, None], r"temperature must be torch.float32 of shape \[2\]"),
        (torch.tensor(1.0), r"temperature must be torch.float32 of shape \[2\]"),
    ],
)
def test_bad_temperatures_are_refused(function: Any, each: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        function(random_logits(2, 9), (), each, key=make_key(2))


def test_they_need_a_key() -> None:
    with pytest.raises(ValueError, match="key must be given for a temperature of each row"):
        token_statistics(random_logits(2, 9), (), each_of(1.0, 1.0))
