"""Statistics against the float64 reference, ties, edge rows and refusals."""

from inspect import signature
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import (
    STATISTICS,
    NoiseKey,
    TokenStatistics,
    categorical,
    statistics,
    tiles,
    token_statistics,
    token_statistics_reference,
)

SIZES = (1, 2, 7, 1023, 1024, 1025, 2047, 2049, 3000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = sorted(STATISTICS)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10**6},
    {"top_p": 1e-9},
    {"top_p": 0.8},
    {"top_p": 1.0},
    {"top_p": 1 - 1e-12},
    {"top_k": 20, "top_p": 0.8},
    {"min_p": 0.0513},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.3017},
)


def make_key(num_rows: int, seed: int = 0) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(seed, count, count, torch.zeros_like(count))


def random_logits(num_rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, vocabulary, generator=source)


def distinct(tokens: Tensor) -> list[int]:
    return sorted(set(tokens.tolist()))


def field(result: TokenStatistics, name: str) -> Tensor:
    value: Tensor | None = getattr(result, name)
    assert value is not None
    return value


def plain(logits: Tensor, sampled: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """What a careful float32 implementation writes, for the size of its errors."""
    p = logits.float().softmax(1)
    log_p = logits.float().log_softmax(1)
    top = torch.nn.functional.pad(p, (0, 1)).topk(2).values
    return {
        "confidence": p.gather(1, sampled[:, None])[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": -(p * log_p).nan_to_num(0.0).sum(1),
        "token_probability": p.gather(1, tokens[:, None])[:, 0],
        "token_log_probability": log_p.gather(1, tokens[:, None])[:, 0],
        "sampled_log_probability": log_p.gather(1, sampled[:, None])[:, 0],
    }


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_errors_are_those_of_float32(vocabulary: int, dtype: torch.dtype, scale: float) -> None:
    logits = random_logits(33, vocabulary, scale=scale).to(dtype)
    tokens = torch.arange(33) % vocabulary
    ours = token_statistics(logits, STATISTICS, temperature=1.0, tokens=tokens, key=make_key(33))
    exact = token_statistics_reference(
        logits, STATISTICS, temperature=1.0, tokens=tokens, key=make_key(33)
    )
    assert torch.equal(ours.sampled, exact.sampled)
    float32 = plain(logits, ours.sampled, tokens)
    for name in NAMES:
        value, truth = field(ours, name), field(exact, name)
        assert value.dtype == torch.float32
        assert value.shape == (33,)
        error, allowed = (value - truth).abs().max(), (float32[name] - truth).abs().max()
        assert error <= 2 * allowed + 2e-7 * max(1.0, float(truth.abs().max())), name


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("vocabulary", [7, 1025, 3000])
def test_samples_equal_the_reference(
    options: dict[str, Any], temperature: float, vocabulary: int
) -> None:
    logits = random_logits(40, vocabulary, seed=1).round(decimals=1)  # with ties
    logits[:, ::3] = -torch.inf
    suppressed = torch.arange(vocabulary) % 5 == 1
    given_options = {**options, "temperature": temperature, "suppressed": suppressed}
    ours = token_statistics(logits, NAMES[:3], key=make_key(40), **given_options)
    exact = token_statistics_reference(logits, NAMES[:3], key=make_key(40), **given_options)
    assert torch.equal(ours.sampled, exact.sampled)
    for name in NAMES[:3]:
        torch.testing.assert_close(
            field(ours, name).double(), field(exact, name), rtol=2e-5, atol=1e-6
        )


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_strides_and_no_writes(data: st.DataObject) -> None:
    vocabulary = data.draw(st.sampled_from(SIZES))
    dtype = data.draw(st.sampled_from((*DTYPES, torch.float64)))
    base = random_logits(12, 2 * vocabulary, seed=2).to(dtype)
    views = {
        "columns": base[:, ::2],
        "rows": base[::2, :vocabulary],
        "transposed": base[:, :vocabulary].t().contiguous().t(),
        "expanded": base[:1, :vocabulary].expand(9, -1),
        "none": base[:0, :vocabulary],
        "trained": base[:, :vocabulary].clone().requires_grad_(),
    }
    logits = views[data.draw(st.sampled_from(sorted(views)))]
    before = logits.detach().clone()
    tokens = torch.zeros(len(logits), dtype=torch.int64)
    options: dict[str, Any] = dict(data.draw(st.sampled_from(FILTERS)))
    options |= {"temperature": 0.8, "tokens": tokens, "key": make_key(len(logits))}
    ours = token_statistics(logits, STATISTICS, **options)
    same = token_statistics(before.contiguous(), STATISTICS, **options)
    assert torch.equal(logits, before)
    for name in ("sampled", *NAMES):
        assert torch.equal(field(ours, name), field(same, name))
        assert not field(ours, name).requires_grad


@pytest.mark.parametrize("vocabulary", [9, 1024, 4000])
@pytest.mark.parametrize("block", [1, 1 << 14])
def test_ties_go_to_the_lower_token(
    vocabulary: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", block)
    logits = torch.zeros(6, vocabulary)
    first = torch.tensor([0, 1, 3, 5, vocabulary - 2, vocabulary - 1])
    for index, token in enumerate(first.tolist()):
        logits[index, token:] = 1.0
    result = token_statistics(logits, ("margin",))
    assert torch.equal(result.sampled, first)
    assert torch.equal(field(result, "margin")[:5], torch.zeros(5))
    for top_k in (1, 2, 4):
        allowed = (torch.arange(vocabulary) >= first[:5, None]).cumsum(1)
        allowed = (allowed >= 1) & (allowed <= top_k)
        for seed in range(20):
            key = make_key(5, seed)
            sampled = categorical(logits[:5], temperature=1.0, top_k=top_k, key=key)[0]
            row = torch.arange(5)
            room = vocabulary - first[:5] >= top_k
            assert allowed[row, sampled][room].all()


def test_suppressed_tokens_leave_the_distribution() -> None:
    logits = random_logits(5, 1500, seed=3)
    banned = torch.zeros(1500, dtype=torch.bool)
    banned[logits.argmax(1)] = True
    banned[1499] = True
    poisoned = logits.masked_fill(banned, torch.nan)  # an untrained row of the embedding
    tokens = torch.tensor([1499, 1499, 0, 1, 2])
    got = token_statistics(poisoned, STATISTICS, suppressed=banned, tokens=tokens)
    cut = logits.masked_fill(banned, -torch.inf)
    assert torch.equal(got.sampled, cut.argmax(1))
    assert torch.equal(field(got, "token_probability")[:2], torch.zeros(2))
    exact = token_statistics_reference(cut, STATISTICS, tokens=tokens)
    for name in NAMES:
        torch.testing.assert_close(field(got, name).double(), field(exact, name))


def test_rows_without_a_finite_logit_are_uniform_over_the_rest() -> None:
    logits = torch.full((2, 1300), -torch.inf)
    banned = torch.arange(1300) % 2 == 0
    got = token_statistics(logits, STATISTICS, suppressed=banned, tokens=torch.tensor([1, 2]))
    assert got.sampled.tolist() == [1, 1]
    torch.testing.assert_close(field(got, "entropy"), torch.tensor(650.0).log().expand(2))
    torch.testing.assert_close(field(got, "confidence"), torch.full((2,), 1 / 650))
    assert field(got, "margin").tolist() == [0.0, 0.0]
    assert field(got, "token_probability").tolist() == [pytest.approx(1 / 650), 0.0]


@pytest.mark.parametrize("options", FILTERS)
def test_rows_of_nothing_but_nan_are_nan(options: dict[str, Any]) -> None:
    logits = torch.full((2, 5), torch.nan)
    options = {"law": "sampling", "temperature": 1.0, "key": make_key(2), **options}
    got = token_statistics(logits, NAMES[:3], **options)
    assert all(field(got, name).isnan().all() for name in NAMES[:3])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", FILTERS)
def test_a_bad_logit_shows_in_its_own_row_only(
    bad: float, temperature: float, options: dict[str, Any]
) -> None:
    logits = random_logits(6, 1100)
    clean = token_statistics(logits, NAMES[:3], temperature=temperature, key=make_key(6), **options)
    logits[2, 1050] = bad
    got = token_statistics(logits, NAMES[:3], temperature=temperature, key=make_key(6), **options)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert 0 <= int(got.sampled[2]) < 1100
    for name in NAMES[:3]:
        assert field(got, name)[2].isnan()
        assert torch.equal(field(got, name)[others], field(clean, name)[others])
    assert torch.equal(got.sampled[others], clean.sampled[others])


def test_peaked_rows_keep_their_digits() -> None:
    """p2 = e**-20 of two tokens: the entropy is 21 e**-20, which 1 - p1 in float32 would lose."""
    got = token_statistics(torch.tensor([[20.0, 0.0]]), ("entropy", "margin"))
    assert float(field(got, "entropy")) == pytest.approx(21 * 2.0611536e-9, rel=0.06)
    assert float(field(got, "margin")) == 1.0
    least = field(token_statistics(torch.tensor([[0.0, -70.0]]), ("entropy",)), "entropy")
    assert float(least) == pytest.approx(71 * 3.975450e-31, rel=0.02, abs=0)


@pytest.mark.parametrize("gap", [86.0, 88.0, 104.0, 1e4, 3e38])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_what_is_far_below_weighs_nothing(gap: float, temperature: float) -> None:
    """Of two equals and 3,000 others: below e**-87 a weight is no number that a CPU likes."""
    logits = torch.full((2, 3002), 1.0 - min(3e38, gap * max(1.0, temperature)))
    logits[0, [7, 2900]] = 1.0
    logits[1, 7] = 1.0
    options: dict[str, Any] = {"temperature": temperature, "key": make_key(2), "law": "sampling"}
    got = token_statistics(logits, ("entropy", "confidence"), **options)
    assert field(got, "confidence").tolist() == [0.5, 1.0]
    assert field(got, "entropy").tolist() == [float(torch.tensor(2.0).log()), 0.0]


def test_only_the_wanted_is_computed() -> None:
    logits = random_logits(3, 50)
    for wanted in ((), ("margin",), {"entropy", "confidence"}, ["token_probability", "sampled"]):
        got = token_statistics(logits, wanted, tokens=torch.zeros(3, dtype=torch.int64))
        named = {name for name in NAMES if getattr(got, name) is not None}
        assert named == set(wanted) - {"sampled"}


def test_categorical_is_the_sample_and_its_untempered_probability() -> None:
    logits, key = random_logits(20, 1200), make_key(20)
    sampled, probability = categorical(logits, temperature=2.0, top_k=9, key=key)
    expected = token_statistics(logits, ("confidence",), temperature=2.0, top_k=9, key=key)
    assert torch.equal(sampled, expected.sampled)
    assert torch.equal(probability, field(expected, "confidence"))
    truth = logits.double().softmax(1).gather(1, sampled[:, None])[:, 0]
    torch.testing.assert_close(probability.double(), truth)


BAD_OPTIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"temperature": float("nan")}, "temperature must be finite and at least 0, got nan"),
    ({"temperature": float("inf")}, "temperature must be finite and at least 0, got inf"),
    ({"temperature": -0.5}, "temperature must be finite and at least 0, got -0.5"),
    ({"temperature": True}, "temperature must be finite and at least 0, got True"),
    ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
    ({"top_k": 2.0}, "top_k must be an integer of at least 1, got 2.0"),
    ({"top_k": True}, "top_k must be an integer of at least 1, got True"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
    ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
    ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
    ({"min_p": float("nan")}, r"min_p must be in \[0, 1\], got nan"),
    ({"min_p": True}, r"min_p must be in \[0, 1\], got True"),
    ({"temperature": 1.0}, "key must be given for temperature 1.0, got None"),
    ({"temperature": 1.0, "key": make_key(3)}, "key must have one entry a row, 4, got 3"),
    (
        {"suppressed": torch.zeros(9, dtype=torch.bool)},
        r"suppressed must be torch.bool of shape \[8\]",
    ),
    ({"suppressed": torch.zeros(8)}, r"suppressed must be torch.bool .* got torch.float32 \[8\]"),
    ({"suppressed": torch.ones(8).bool()}, "suppressed must leave a token, got all of 8"),
    ({"suppressed": torch.ones(16).bool()[::2]}, "suppressed must leave a token, got all of 8"),
    ({"tokens": torch.zeros(4)}, r"tokens must be torch.int64 of shape \[4\], got torch.float32"),
    (
        {"tokens": torch.zeros(4, 1, dtype=torch.int64)},
        r"tokens must be .* got torch.int64 \[4, 1\]",
    ),
    ({"law": "modell"}, "law must be 'model' or 'sampling', got 'modell'"),
    ({"law": None}, "law must be 'model' or 'sampling', got None"),
    ({"scale_statistics": 1}, "scale_statistics must be True or False, got 1"),
    ({"top": -1}, "top must be an integer of at least 0, got -1"),
    ({"top": 2.0}, "top must be an integer of at least 0, got 2.0"),
    ({"top": True}, "top must be an integer of at least 0, got True"),
    ({"scale": torch.ones(3)}, r"scale must be torch.float32 of shape \[4\], got .* \[3\]"),
    ({"scale": torch.ones(4).double()}, "scale must be torch.float32 .* got torch.float64"),
    ({"scale": torch.tensor([1.0, 0.0, 1.0, -2.0])}, "scale must be finite and above 0, got 0.0"),
    ({"scale": torch.tensor([1.0, 1.0, torch.nan, 1.0])}, "scale must be .* above 0, got nan"),
    ({"scale": torch.tensor([torch.inf, 1.0, 1.0, 1.0])}, "scale must be .* above 0, got inf"),
)


@pytest.mark.parametrize("function", [token_statistics, token_statistics_reference])
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(4, 8), (), **options)


@pytest.mark.parametrize("function", [token_statistics, token_statistics_reference])
def test_bad_names_and_logits_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="got 'confidance', did you mean 'confidence'"):
        function(torch.zeros(4, 8), ("confidance",))
    with pytest.raises(ValueError, match=r"wanted must name .* got 'xyz'$"):
        function(torch.zeros(4, 8), ("xyz",))
    with pytest.raises(ValueError, match="tokens must be given for 'token_probability', got None"):
        function(torch.zeros(4, 8), ("token_probability",))
    for bad in (torch.zeros(8), torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 0)):
        with pytest.raises(
            ValueError, match=r"logits must be floating point of shape \[N, V\], got"
        ):
            function(bad, ())


@pytest.mark.parametrize("function", [token_statistics, token_statistics_reference])
def test_what_says_how_to_sample_may_be_given_in_order(function: Any) -> None:
    logits, key = random_logits(5, 40), make_key(5)
    named = function(logits, {"margin"}, temperature=0.7, top_k=9, top_p=0.9, key=key)
    in_order = function(logits, {"margin"}, 0.7, 9, 0.9, key)
    assert torch.equal(in_order.sampled, named.sampled)
    assert torch.equal(in_order.margin, named.margin)
    with pytest.raises(TypeError, match="takes from 2 to 6 positional arguments but 7"):
        function(logits, (), 0.0, None, None, None, None)


def test_the_reference_has_the_same_signature() -> None:
    assert signature(token_statistics) == signature(token_statistics_reference)


def test_statistics_names_are_those_of_the_result() -> None:
    assert set(TokenStatistics.__dataclass_fields__) == {
        "sampled",
        "maximum",
        "top_tokens",
        "top_probabilities",
        *statistics.STATISTICS,
    }


def test_log_probabilities_do_not_underflow() -> None:
    logits = torch.tensor([[0.0, -200.0, -torch.inf], [0.0, 0.0, 5.0]])
    got = token_statistics(
        logits, {"token_log_probability"}, tokens=torch.tensor([1, 2]), suppressed=logits[1] == 5.0
    )
    assert field(got, "token_log_probability").tolist() == [-200.0, -torch.inf]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maximum_tells_broken_rows(value: float) -> None:
    logits = random_logits(3, 1500)
    logits[1, 1200] = value
    got = token_statistics(logits, ())
    assert got.maximum.isfinite().tolist() == [True, False, True]
