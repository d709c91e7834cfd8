"""Cuts of the fused kernels against those of torch. `test_triton_scan.py` runs this file.

Shapes: N rows, V vocabulary, J bonuses.
"""

import os
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import Bonus, NoiseKey, fused
from dlm.kernels.call import Call
from dlm.kernels.filters import Cut, filter_cut
from dlm.kernels.fused import FusedLaw, find_cut
from dlm.kernels.statistics import by_kernels
from dlm.kernels.tiles import LOWEST, SUPPRESSED, TiledLogits
from dlm.kernels.triton_cut import BFLOAT16, FLOAT16, FLOAT32, value_at

# numpy warns where a float32 is meant to overflow or to be NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BORDERLINE = 1e-6
"""Share of the mass within which sums in another order may move a cut."""


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ON_CPU", True)


def random_logits(num_rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(num_rows, vocabulary, generator=source)).to(DEVICE)


def cuts(logits: Tensor, temperature: float = 1.0, **options: Any) -> tuple[Cut, Cut, Tensor]:
    """By the kernels, by torch, and the values that are cut, float32 [N, V]."""
    call = Call(logits, (), **options)
    assert call.cuts
    assert fused.covers(call)
    each = torch.full((len(logits),), temperature, device=DEVICE)
    bits = find_cut(call, FusedLaw(each, call.scale))
    tiled = TiledLogits.of(logits, call.suppressed, call.bonus)
    room = torch.empty(len(logits), tiled.tiles, tiled.width, device=DEVICE)
    tiled.read(slice(0, len(logits)), slice(0, tiled.tiles), room)
    values = room.flatten(1)
    tempering = temperature if call.scale is None else temperature / call.scale[:, None]
    top_p = None if call.top_p == 1 else call.top_p
    found = Cut(bits[:, :1].contiguous().view(torch.float32), bits[:, 1:])
    expected = filter_cut(values, tempering, call.top_k, top_p, call.min_p)
    return found, expected, values[:, : logits.shape[1]]


def equal(found: Cut, expected: Cut) -> bool:
    return torch.equal(found.value, expected.value) and torch.equal(found.token, expected.token)


def check(logits: Tensor, temperature: float = 1.0, **options: Any) -> None:
    """Fail unless both paths cut at one token, or the mass between their cuts is borderline."""
    found, expected, values = cuts(logits, temperature, **options)
    if equal(found, expected):
        return
    share, scale = options.get("top_p"), options.get("scale")
    assert share is not None, (found, expected)
    ids = torch.arange(values.shape[1], device=DEVICE)
    gaps = (values - values.amax(1, keepdim=True)).double()
    weights = (gaps * (1.0 if scale is None else scale[:, None]) / temperature).exp()
    ranked = values.sort(dim=1, descending=True, stable=True).indices
    survivors = weights.gather(1, ranked)[:, : options.get("top_k")]
    running = survivors.cumsum(1) / survivors.sum(1, keepdim=True)
    for row, sums in enumerate(running):
        kept = [int((~cut.drops(values, ids)[row]).sum()) for cut in (found, expected)]
        assert max(kept) <= len(sums)
        assert sums[min(kept) - 1] >= share - BORDERLINE, (row, kept)
        assert max(kept) == 1 or sums[max(kept) - 2] <= share + BORDERLINE, (row, kept)


@pytest.mark.slow
@given(
    rows=st.lists(
        st.lists(st.sampled_from([-torch.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 3.0]), min_size=9),
        min_size=1, max_size=3,
    ),
    dtype=st.sampled_from(DTYPES),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.none() | st.floats(0.01, 0.99),
    min_p=st.none() | st.floats(1e-9, 1.0),
)  # fmt: skip
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_small_rows_with_many_ties(
    rows: list[list[float]],
    dtype: torch.dtype,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    if top_k is None and top_p is None and min_p is None:
        top_k = 1
    width = min(map(len, rows))
    logits = torch.tensor([row[:width] for row in rows], dtype=dtype, device=DEVICE)
    check(logits, temperature, top_k=top_k, top_p=top_p, min_p=min_p)


@pytest.mark.parametrize("filters", [{"min_p": 0.999}, {"top_k": 1}], ids=str)
def test_what_alone_is_kept_is_certain(filters: dict[str, Any]) -> None:
    row = torch.arange(3, device=DEVICE)
    options = {"temperature": 0.7, "key": NoiseKey(0, row, row, row), **filters}
    found = by_kernels(Call(random_logits(3, 1100, seed=5), ("margin",), law="sampling", **options))
    assert found.margin is not None
    assert found.margin.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_min_p_is_exact(dtype: torch.dtype) -> None:
    """To the bit, with scales and beside what top-k keeps; of a broken row nothing is kept."""
    logits = random_logits(6, 3000, seed=4).to(dtype)
    logits[4] = -torch.inf
    scale = torch.linspace(0.3, 2, 6, device=DEVICE)
    suppressed = torch.arange(3000, device=DEVICE) % 3 == 0
    for options in ({"min_p": 0.02}, {"min_p": 0.02, "top_k": 3}, {"min_p": 0.9, "top_k": 300}):
        found, expected, values = cuts(logits, 0.7, scale=scale, suppressed=suppressed, **options)
        assert equal(found, expected), options
        assert (values >= found.value)[torch.arange(6) != 4].any(1).all()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 1023, 1025, 4500])
def test_any_vocabulary(vocabulary: int, dtype: torch.dtype) -> None:
    """Around a tile, and of two programs a row, the second part padding."""
    logits = random_logits(2, vocabulary, seed=vocabulary).to(dtype)
    for top_k, top_p in ((vocabulary // 3, None), (None, 0.8123), (vocabulary // 2, 0.3)):
        if top_k != 0:
            filters: dict[str, Any] = {"top_k": top_k, "top_p": top_p}
            if Call(logits, (), **filters).cuts:  # not one token of one
                check(logits, 0.9, **filters)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [None, 60])
def test_exact_sums_give_the_very_cut(top_k: int | None) -> None:
    """Weights of 1 and 0 only: no share is borderline, not even one that a count meets."""
    logits = torch.full((3, 1200), -torch.inf, device=DEVICE, dtype=torch.bfloat16)
    logits[0] = 2.0
    logits[1, 7:1193:4] = -1.0
    logits[2, 1100:] = 300.0
    for top_p in (1e-300, 0.07, 0.1, 0.3, 0.7, 1 - 2**-53):
        found, expected, _ = cuts(logits, top_k=top_k, top_p=top_p)
        assert equal(found, expected), top_p


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16]
)
def test_all_that_changes_logits(dtype: torch.dtype) -> None:
    """A bonus makes values, and cuts, that the dtype of the logits does not have."""
    logits = random_logits(3, 1100, seed=5).to(dtype)
    tokens = torch.randperm(1100, generator=torch.Generator().manual_seed(1))[:90]
    tokens = tokens.view(3, 30).to(DEVICE)
    bonus = Bonus(tokens, 8 + torch.arange(90.0, device=DEVICE).view(3, 30) / 4096)
    logits.scatter_(1, tokens, 0.0)
    suppressed = torch.arange(1100, device=DEVICE) % 3 == 1
    scale = torch.tensor([0.25, 1.0, 3.0], device=DEVICE)
    filters: dict[str, Any] = {"top_k": 15, "top_p": 0.8123}
    check(logits, 0.7, scale=scale, suppressed=suppressed, **filters)
    check(logits, 0.7, bonus=bonus, scale=scale, suppressed=suppressed, **filters)
    check(logits, bonus=bonus, top_k=7)
    check(logits, 0.7, suppressed=suppressed, top_k=900)  # of 734: the cut is among the suppressed


@pytest.mark.parametrize("top_k", [50, pytest.param(700, marks=pytest.mark.slow)])
def test_rounding_never_keeps_more_than_k(top_k: int) -> None:
    """Nearly the whole share asks for all that top-k keeps, whatever the order of its sum."""
    logits = random_logits(6, 1000, seed=3).bfloat16()
    logits[:3] = logits[:3].round()
    found, _, values = cuts(logits, top_k=top_k, top_p=1 - 2**-53)
    ids = torch.arange(1000, device=DEVICE)
    assert ((~found.drops(values, ids)).sum(1) <= top_k).all()
    check(logits, top_k=top_k, top_p=1 - 2**-53)


@pytest.mark.slow
def test_extremes_of_float32() -> None:
    logits = random_logits(4, 300)
    logits[0, :200] = -torch.inf
    logits[1] = torch.where(logits[1] > 0, 3e38, -3e38)
    logits[2] *= 1e-42
    logits[3] = -torch.inf
    for top_k in (1, 201, 299):
        check(logits, top_k=top_k)
    for temperature in (1e-30, 1e30):
        check(logits, temperature, top_p=0.5123)


def test_a_row_has_one_cut_in_every_batch() -> None:
    logits = random_logits(4, 4500, scale=0.3).bfloat16()
    filters: dict[str, Any] = {"top_k": 4000, "top_p": 0.9}
    whole, _, _ = cuts(logits, **filters)
    for row in (0, 3):
        alone, _, _ = cuts(logits[row : row + 1], **filters)
        assert equal(alone, whole[row : row + 1])


@pytest.mark.slow
def test_a_vocabulary_of_a_checkpoint() -> None:
    check(random_logits(1, 126_464).bfloat16(), 0.7, top_k=5000, top_p=0.9)


@pytest.mark.parametrize("form", [BFLOAT16, FLOAT16])
def test_numbers_of_16_bits_have_the_order_of_values(form: int) -> None:
    numbers = torch.arange(-(2**15), 2**15, device=DEVICE)
    found = torch.empty(2**16, device=DEVICE)
    value_kernel[(1,)](numbers, found, FORMAT=form)
    nan = found.isnan()
    assert torch.equal(found[~nan], found[~nan].sort().values)
    assert (numbers[nan] > 0).all(), "only at the upper end, where nothing reaches them"
    words = numbers.to(torch.int16).view(torch.bfloat16 if form == BFLOAT16 else torch.float16)
    every = words[words.isfinite()].float().clamp(min=LOWEST)
    assert torch.isin(every, found).all()
    assert torch.equal(found[:2], torch.tensor([SUPPRESSED, LOWEST], device=DEVICE))


def test_numbers_of_32_bits_have_the_order_of_values() -> None:
    """Of those whose lower half is one word."""
    numbers = torch.arange(-(2**15), 2**15, device=DEVICE) * 65536 + 4660
    found = torch.empty(2**16, device=DEVICE)
    value_kernel[(1,)](numbers, found, FORMAT=FLOAT32)
    nan, infinite = found.isnan(), found == -torch.inf
    assert (numbers[nan] > 0).all()
    assert torch.equal(found[~nan], found[~nan].sort().values)
    assert len(found[~nan & ~infinite].unique()) == 2 * 255 * 128
    assert int(infinite.sum()) == int(nan.sum()) == 128


@triton.jit  # type: ignore[untyped-decorator]
def value_kernel(numbers, out, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 65536)
    tl.store(out + at, value_at(tl.load(numbers + at), FORMAT))
