"""The sampling law, row scales and ln q(sampled), against the float64 reference and by their rules.

Shapes: N rows, V vocabulary.
"""

from itertools import product
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
    tiles,
    token_statistics,
    token_statistics_reference,
)
from dlm.kernels.call import Call
from dlm.kernels.reference import _survivors
from dlm.kernels.tiles import TiledLogits

SIZES = (1, 2, 7, 1023, 1024, 1025, 2049, 3000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = sorted(STATISTICS)
FIELDS = ("sampled", *NAMES, "top_tokens", "top_probabilities")
# Shares that no count of equal tokens meets exactly, where the last digit would decide.
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10**6},
    {"top_p": 1e-9},
    {"top_p": 0.8123},
    {"top_k": 20, "top_p": 0.8123},
    {"min_p": 0.0513},
    {"top_k": 20, "top_p": 0.8123, "min_p": 0.3017},
)


def make_key(num_rows: int, seed: int = 0) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(seed, count, count, torch.zeros_like(count))


def random_logits(num_rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, vocabulary, generator=source)


def random_scale(num_rows: int, seed: int = 0) -> Tensor:
    """Between 1/4 and 4."""
    return 16 ** (torch.rand(num_rows, generator=torch.Generator().manual_seed(seed)) - 0.5)


def field(result: TokenStatistics, name: str) -> Tensor:
    value: Tensor | None = getattr(result, name)
    assert value is not None
    return value


def plain(scores: Tensor, sampled: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """What a careful float32 implementation writes about scores with -inf where dropped."""
    p, log_p = scores.softmax(1), scores.log_softmax(1)
    top = torch.nn.functional.pad(p, (0, 1)).topk(2).values
    return {
        "confidence": p.gather(1, sampled[:, None])[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": -(p * log_p).nan_to_num(0.0).sum(1),
        "token_probability": p.gather(1, tokens[:, None])[:, 0],
        "token_log_probability": log_p.gather(1, tokens[:, None])[:, 0],
        "sampled_log_probability": log_p.gather(1, sampled[:, None])[:, 0],
    }


@pytest.mark.one_in(6)
@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("options", FILTERS)
def test_errors_of_the_sampling_law_are_those_of_float32(
    vocabulary: int, dtype: torch.dtype, temperature: float, options: dict[str, Any]
) -> None:
    logits, scale = random_logits(33, vocabulary).to(dtype), random_scale(33)
    tokens = torch.where(torch.arange(33) % 2 == 0, logits.argmax(1), torch.arange(33) % vocabulary)
    arguments: dict[str, Any] = {
        "temperature": temperature, "tokens": tokens, "key": make_key(33), "law": "sampling",
        "scale": scale, **options,
    }  # fmt: skip
    ours = token_statistics(logits, STATISTICS, **arguments)
    exact = token_statistics_reference(logits, STATISTICS, **arguments)
    assert torch.equal(ours.sampled, exact.sampled)
    used = temperature or 1.0
    scores = logits.double() * scale.double()[:, None] / used
    kept = _survivors(scores, Call(scores, (), **options))
    float32 = plain(
        (logits.float() * scale[:, None] / used).masked_fill(~kept, -torch.inf),
        ours.sampled,
        tokens,
    )
    for name in NAMES:
        value, truth = field(ours, name), field(exact, name)
        assert value.dtype == torch.float32
        assert value.shape == (33,)
        if name == "sampled_log_probability" and temperature == 0:
            assert torch.equal(value, torch.zeros(33))
            continue
        assert torch.equal(value.isinf(), truth.isinf()), name
        rows = truth.isfinite()
        value, truth, base = value[rows], truth[rows], float32[name][rows]
        error, allowed = (value - truth).abs().max(), (base - truth).abs().max()
        assert error <= 2 * allowed + 2e-7 * max(1.0, float(truth.abs().max())), name


@pytest.mark.one_in(6)
@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("vocabulary", [7, 1025, 3000])
@pytest.mark.parametrize("law", ["model", "sampling"])
@pytest.mark.parametrize("scale_statistics", [True, False])
def test_ties_holes_and_scales_match_the_reference(
    options: dict[str, Any], temperature: float, vocabulary: int, law: str, scale_statistics: bool
) -> None:
    logits = random_logits(40, vocabulary, seed=1).round(decimals=1)
    logits[:, ::3] = -torch.inf
    logits[7] = -torch.inf
    arguments: dict[str, Any] = {
        **options, "temperature": temperature, "suppressed": torch.arange(vocabulary) % 5 == 1,
        "tokens": torch.arange(40) % vocabulary, "key": make_key(40), "law": law, "top": 6,
        "scale": random_scale(40), "scale_statistics": scale_statistics,
    }  # fmt: skip
    ours = token_statistics(logits, STATISTICS, **arguments)
    exact = token_statistics_reference(logits, STATISTICS, **arguments)
    assert torch.equal(ours.sampled, exact.sampled)
    assert torch.equal(field(ours, "top_tokens"), field(exact, "top_tokens"))
    for name in (*NAMES, "top_probabilities"):
        torch.testing.assert_close(
            field(ours, name).double(), field(exact, name), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("function", [token_statistics, token_statistics_reference])
def test_the_scale_is_a_factor_on_the_logits(function: Any) -> None:
    """Beside logits that were multiplied by hand, in float64."""
    logits, scale = random_logits(30, 2100, seed=5), random_scale(30)
    arguments: dict[str, Any] = {
        "temperature": 0.8, "top_p": 0.9, "tokens": torch.arange(30), "key": make_key(30), "top": 4,
    }  # fmt: skip
    by_hand = logits.double() * scale.double()[:, None]
    for law in ("model", "sampling"):
        ours = function(logits, STATISTICS, scale=scale, law=law, **arguments)
        exact = token_statistics_reference(by_hand, STATISTICS, law=law, **arguments)
        for name in FIELDS:
            torch.testing.assert_close(
                field(ours, name).double(), field(exact, name).double(), rtol=2e-5, atol=1e-6
            )


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("law", ["model", "sampling"])
def test_a_scale_of_one_changes_no_bit(
    options: dict[str, Any], temperature: float, law: str
) -> None:
    logits = random_logits(20, 2500, seed=6)
    arguments: dict[str, Any] = {
        **options, "temperature": temperature, "key": make_key(20), "law": law, "top": 5,
        "tokens": torch.arange(20),
    }  # fmt: skip
    without = token_statistics(logits, STATISTICS, **arguments)
    for scale_statistics in (True, False):
        ones = token_statistics(
            logits, STATISTICS, scale=torch.ones(20), scale_statistics=scale_statistics, **arguments
        )
        for name in FIELDS:
            assert torch.equal(field(ones, name), field(without, name)), name


@pytest.mark.parametrize("law", ["model", "sampling"])
def test_statistics_may_be_kept_from_the_scale(law: str) -> None:
    logits, scale = random_logits(40, 1500, seed=7, scale=1.0), random_scale(40)
    arguments: dict[str, Any] = {
        "temperature": 1.0, "top_k": 50, "tokens": torch.arange(40), "key": make_key(40),
        "law": law, "top": 3,
    }  # fmt: skip
    both = token_statistics(logits, STATISTICS, scale=scale, **arguments)
    sampling = token_statistics(
        logits, STATISTICS, scale=scale, scale_statistics=False, **arguments
    )
    without = token_statistics(logits, STATISTICS, **arguments)
    assert torch.equal(sampling.sampled, both.sampled)
    assert not torch.equal(sampling.sampled, without.sampled)
    log_q = "sampled_log_probability"
    assert torch.equal(field(sampling, log_q), field(both, log_q))
    for name in set(FIELDS) - {"sampled", "confidence", log_q}:  # confidence is of another sample
        assert torch.equal(field(sampling, name), field(without, name)), name
    assert not torch.equal(field(both, "entropy"), field(without, "entropy"))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_the_sampling_law_by_hand(temperature: float) -> None:
    """p = 0.4, 0.3, 0.2, 0.1: T = 0 scores as T = 1, and only the filters differ."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    power = 1 / (temperature or 1.0)
    arguments: dict[str, Any] = {"temperature": temperature, "key": make_key(1), "law": "sampling"}
    cases: tuple[tuple[dict[str, Any], int], ...] = (
        ({}, 4), ({"top_k": 2}, 2), ({"top_p": 0.95}, 4 - (power == 2)), ({"min_p": 0.8}, 1),
        ({"min_p": 0.3}, 3 - (power == 2)),
    )  # fmt: skip
    for options, kept in cases:
        p = torch.tensor([0.4, 0.3, 0.2, 0.1][:kept]).double() ** power
        p /= p.sum()
        for token, rank in ((1, 0), (3, 1), (2, 2), (0, 3)):
            got = token_statistics(
                logits, STATISTICS, tokens=torch.tensor([token]), **arguments, **options
            )
            share = float(p[rank]) if rank < kept else 0.0
            log_share = float(p[rank].log()) if rank < kept else -torch.inf
            assert float(field(got, "token_probability")) == pytest.approx(share, abs=1e-6)
            assert float(field(got, "token_log_probability")) == pytest.approx(log_share, abs=1e-6)
            margin = float(p[0] - (p[1] if kept > 1 else 0))
            assert float(field(got, "margin")) == pytest.approx(margin, abs=1e-6)
            entropy = float(-(p * p.log()).sum())
            assert float(field(got, "entropy")) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("vocabulary", [1, 5, 1024, 2050])
def test_a_lone_survivor_is_certain(temperature: float, vocabulary: int) -> None:
    logits = torch.zeros(6, vocabulary)  # equals too: the lowest id survives alone
    logits[::2] = random_logits(3, vocabulary, seed=8)
    best = logits.argmax(1)
    for options in ({"top_k": 1}, {"top_p": 1e-9}):
        got = token_statistics(
            logits, STATISTICS, temperature=temperature, key=make_key(6), law="sampling",
            tokens=(best + 1) % vocabulary, **options,
        )  # fmt: skip
        assert torch.equal(got.sampled, best)
        assert torch.equal(field(got, "confidence"), torch.ones(6))
        assert torch.equal(field(got, "margin"), torch.ones(6))
        assert torch.equal(field(got, "entropy"), torch.zeros(6))
        assert torch.equal(field(got, "sampled_log_probability"), torch.zeros(6))
        other = float(vocabulary == 1)
        assert torch.equal(field(got, "token_probability"), torch.full((6,), other))


def test_equals_at_the_cut_share_the_law() -> None:
    logits = torch.zeros(2, 3000)
    tokens = torch.tensor([1, 2])
    got = token_statistics(logits, STATISTICS, top_k=2, law="sampling", tokens=tokens)
    assert field(got, "token_probability").tolist() == [0.5, 0.0]
    assert field(got, "token_log_probability")[1] == -torch.inf
    assert field(got, "margin").tolist() == [0.0, 0.0]
    torch.testing.assert_close(field(got, "entropy"), torch.tensor([2.0, 2.0]).log())


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_sample_is_as_likely_as_its_law_says(
    options: dict[str, Any], temperature: float
) -> None:
    got = token_statistics(
        random_logits(500, 1200), STATISTICS, temperature=temperature, key=make_key(500),
        law="sampling", scale=random_scale(500), tokens=torch.zeros(500, dtype=torch.int64),
        **options,
    )  # fmt: skip
    assert (field(got, "confidence") > 0).all()
    torch.testing.assert_close(
        field(got, "sampled_log_probability").exp(), field(got, "confidence"), rtol=1e-5, atol=0
    )


def test_tempered_log_probabilities_do_not_underflow() -> None:
    got = token_statistics(
        torch.tensor([[0.0, -200.0, -torch.inf]]).expand(2, -1), {"token_log_probability"},
        temperature=0.5, key=make_key(2), law="sampling", tokens=torch.tensor([1, 2]),
        scale=torch.tensor([3.0, 1e-30]),
    )  # fmt: skip
    assert field(got, "token_log_probability").tolist() == [-1200.0, -torch.inf]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0, 1e300])
@pytest.mark.parametrize("law", ["model", "sampling"])
def test_scales_of_any_size_keep_the_holes(temperature: float, law: str) -> None:
    logits = random_logits(4, 1300)
    logits[:, ::2] = -torch.inf
    logits[3] = -torch.inf
    scale = torch.tensor([1e-45, 3e38, 1e-20, 1e-38])
    options: dict[str, Any] = {"temperature": temperature, "key": make_key(4), "law": law}
    got = token_statistics(
        logits, STATISTICS, scale=scale, top=2, suppressed=torch.arange(1300) % 2 == 0,
        tokens=torch.full((4,), 6), **options,
    )  # fmt: skip
    assert (got.sampled % 2 == 1).all()
    for name in NAMES[:3]:
        assert field(got, name).isfinite().all()
    assert torch.equal(field(got, "token_probability"), torch.zeros(4))
    assert torch.equal(field(got, "token_log_probability"), torch.full((4,), -torch.inf))
    if law == "model":
        expected = torch.tensor([1 / 650, 1.0, 1 / 650, 1 / 650])
        torch.testing.assert_close(field(got, "top_probabilities")[:, 0], expected)


def draw_options(data: st.DataObject) -> dict[str, Any]:
    return {
        **data.draw(st.sampled_from(FILTERS)),
        "temperature": data.draw(st.sampled_from((0.0, 0.6, 1.0))),
        "law": data.draw(st.sampled_from(("model", "sampling"))),
        "scale_statistics": data.draw(st.booleans()),
        "top": data.draw(st.sampled_from((0, 1, 4, 3000))),
    }


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_row_alone_has_the_bits_it_has_in_a_batch(data: st.DataObject) -> None:
    vocabulary = data.draw(st.sampled_from((5, 1024, 2500)))
    options = draw_options(data)
    order = torch.tensor(data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=5)))
    logits, scale, key = random_logits(30, vocabulary), random_scale(30), make_key(30)
    tokens = torch.arange(30) % vocabulary
    some = NoiseKey(0, *(part[order] for part in (key.row, key.position, key.draw)))
    whole = token_statistics(logits, STATISTICS, key=key, scale=scale, tokens=tokens, **options)
    part = token_statistics(
        logits[order], STATISTICS, key=some, scale=scale[order], tokens=tokens[order], **options
    )
    for name in FIELDS if options["top"] else FIELDS[:-2]:
        assert torch.equal(field(whole, name)[order], field(part, name)), name


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_blocks_and_reads(data: st.DataObject) -> None:
    """Any block budget gives the same bits, and every row is read once whatever is asked."""
    options = draw_options(data)
    logits, key = random_logits(9, 2500), make_key(9)
    options |= {"tokens": torch.arange(9), "key": key, "scale": random_scale(9)}
    options["suppressed"] = torch.arange(2500) % 9 == data.draw(st.integers(0, 9))
    places = torch.tensor([0, 1023, 1024, 2047, 2499]).expand(9, -1)
    options["bonus"] = Bonus(places, torch.full(places.shape, 3.0))
    expected = token_statistics(logits, STATISTICS, **options)
    seen: list[tuple[int, int]] = []
    read = TiledLogits.read

    def counted(self: TiledLogits, rows: slice, part: slice, out: Tensor) -> None:
        seen.extend(product(range(rows.start, rows.stop), range(part.start, part.stop)))
        read(self, rows, part, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_BLOCK", data.draw(st.sampled_from((1, 3000, 8000, 1 << 20))))
        patch.setattr(TiledLogits, "read", counted)
        got = token_statistics(logits, STATISTICS, **options)
    assert seen == list(product(range(9), range(3)))
    for name in FIELDS if options["top"] else FIELDS[:-2]:
        assert torch.equal(field(got, name), field(expected, name)), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", FILTERS)
def test_a_bad_logit_shows_in_its_own_row_only(
    bad: float, temperature: float, options: dict[str, Any]
) -> None:
    logits = random_logits(6, 1100)
    arguments: dict[str, Any] = {
        **options, "temperature": temperature, "key": make_key(6), "law": "sampling", "top": 3,
        "tokens": torch.arange(6), "scale": random_scale(6),
    }  # fmt: skip
    clean = token_statistics(logits, STATISTICS, **arguments)
    logits[2, 1050] = bad
    got = token_statistics(logits, STATISTICS, **arguments)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert ((field(got, "top_tokens")[2] >= 0) & (field(got, "top_tokens")[2] < 1100)).all()
    for name in FIELDS:
        assert torch.equal(field(got, name)[others], field(clean, name)[others]), name
        assert name in {"sampled", "top_tokens"} or field(got, name)[2].isnan().all(), name


def test_nothing_new_is_computed_unasked() -> None:
    got = token_statistics(random_logits(3, 50), ("margin",), scale=torch.ones(3), law="sampling")
    assert [name for name in FIELDS if getattr(got, name) is not None] == ["sampled", "margin"]


def test_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for vocabulary in (3, 2000):
        got = token_statistics(
            torch.zeros(0, vocabulary), STATISTICS, temperature=0.5, top_k=2, law="sampling", top=4,
            tokens=none, key=make_key(0), scale=torch.ones(0),
        )  # fmt: skip
        assert field(got, "sampled_log_probability").shape == (0,)
        assert field(got, "top_tokens").shape == (0, min(4, vocabulary))
