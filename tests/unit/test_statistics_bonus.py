"""A bonus on a few tokens of every row: added in float32, whatever the logits are."""

from typing import Any

import pytest
import torch

from dlm.kernels import Bonus, NoiseKey, token_statistics, token_statistics_reference

WANTED = ("confidence", "margin", "entropy", "token_probability", "sampled_log_probability")


def a_bonus(rows: int, vocab: int, count: int = 5) -> Bonus:
    """Distinct tokens, some of them close to the ends of tiles, and one entry of nothing."""
    generator = torch.Generator().manual_seed(vocab)
    tokens = torch.stack([torch.randperm(vocab, generator=generator)[:count] for _ in range(rows)])
    values = 4 * torch.randn(rows, count, generator=generator)
    values[:, -1] = 0.0
    tokens[:, -1] = tokens[:, 0]
    return Bonus(tokens, values)


@pytest.mark.parametrize("vocab", [7, 1024, 1025, 2600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 1.0, "top_k": 3, "law": "sampling"}]
)
def test_is_that_of_the_sum(vocab: int, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Bit for bit the statistics of float32 logits that hold the sum already."""
    rows = 9
    logits = (3 * torch.randn(rows, vocab)).to(dtype)
    bonus = a_bonus(rows, vocab)
    index = torch.arange(rows)
    common: dict[str, Any] = {
        "tokens": bonus.tokens[:, 1], "key": NoiseKey(0, index, index, index), "top": 3,
        "suppressed": torch.arange(vocab) == 2, **options,
    }  # fmt: skip
    found = token_statistics(logits, WANTED, bonus=bonus, **common)
    summed = logits.float().scatter_add(1, bonus.tokens, bonus.values)
    expected = token_statistics(summed, WANTED, **common)
    exact = token_statistics_reference(logits, WANTED, bonus=bonus, **common)
    assert torch.equal(found.sampled, expected.sampled)
    assert torch.equal(found.sampled, exact.sampled)
    assert torch.equal(found.top_tokens, expected.top_tokens)  # type: ignore[arg-type]
    for name in WANTED:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(exact, name), rtol=1e-5, atol=1e-5
        )


def test_counts_where_the_dtype_would_lose_it() -> None:
    logits = torch.tensor([[20.0, 20.0, 0.0]], dtype=torch.bfloat16)
    bonus = Bonus(torch.tensor([[1]]), torch.tensor([[0.05]]))
    assert (logits[0, 0] + 0.05).item() == 20.0, "the logits cannot hold it"
    assert token_statistics(logits, (), bonus=bonus).sampled.tolist() == [1]
    assert logits.tolist() == [[20.0, 20.0, 0.0]], "read only"


@pytest.mark.parametrize(
    "bonus",
    [
        Bonus(torch.zeros(2, 1), torch.zeros(2, 1)),
        Bonus(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 2)),
        Bonus(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1)),
        Bonus(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.bfloat16)),
    ],
)
def test_a_bonus_that_does_not_fit_is_refused(bonus: Bonus) -> None:
    with pytest.raises(ValueError, match=r"bonus must be .* \[2, J\]"):
        token_statistics(torch.zeros(2, 4), (), bonus=bonus)
