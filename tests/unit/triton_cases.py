"""The fused kernels against torch and float64. `test_triton_scan.py` runs this file, as a process.

Triton looks for TRITON_INTERPRET when it is imported, so the process that sets it must be new.
DLM_TEST_DEVICE=cuda runs them on a GPU. An interpreted row takes tens of milliseconds: few rows.

Shapes: N rows, V vocabulary.
"""

import os
from collections.abc import Collection
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.kernels import (
    STATISTICS,
    Bonus,
    NoiseKey,
    TokenStatistics,
    fused,
    selfcheck,
    token_statistics,
    token_statistics_reference,
)
from dlm.kernels.call import Call
from dlm.kernels.reference import _survivors
from dlm.kernels.statistics import by_kernels
from dlm.kernels.statistics import by_torch as torch_path

# numpy warns where a float32 is meant to overflow or to be NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = sorted(STATISTICS)
# Shares that no count of equal tokens meets and no prefix to 5e-3: the last digit would decide.
FILTERS: tuple[dict[str, Any], ...] = (
    {"top_k": 5},
    {"top_p": 0.7701},
    {"top_k": 20, "top_p": 0.7701, "min_p": 0.0517},
    {"min_p": 0.0513},
)
UNFILTERED_OR_BOTH: tuple[dict[str, Any], ...] = ({}, FILTERS[2])
Ways = tuple[tuple[float, dict[str, Any]], ...]  # temperatures and filters
GREEDY_OR_DRAWN: Ways = ((0.0, {}), (1.0, {}), (1.0, FILTERS[2]))
slow = partial(pytest.param, marks=pytest.mark.slow)  # seconds, and much like one that is quick
SLOW_IF_FILTERED = (*GREEDY_OR_DRAWN[:2], slow(*GREEDY_OR_DRAWN[2]))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ON_CPU", True)


def on(value: Any) -> Any:
    """The same on the device that is tested."""
    if isinstance(value, Bonus):
        return Bonus(*map(on, value))
    if isinstance(value, NoiseKey):
        return NoiseKey(on(value.seed), on(value.row), on(value.position), on(value.draw))
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def made(logits: Tensor, wanted: Collection[str], **options: Any) -> TokenStatistics:
    """By the kernels: a call that they do not cover fails."""
    call = Call(logits.detach(), wanted, **options)
    assert fused.covers(call)
    return by_kernels(call)


def by_torch(logits: Tensor, wanted: Collection[str], **options: Any) -> TokenStatistics:
    """By the path of plain torch."""
    return torch_path(Call(logits.detach(), wanted, **options))


def make_key(num_rows: int, seed: int | Tensor = 0) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(seed, count * 2**40 - 7, count + 5, count % 3)


def random_logits(num_rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, vocabulary, generator=source)


def random_scale(num_rows: int) -> Tensor:
    """Between 1/4 and 4."""
    return 16 ** (torch.rand(num_rows, generator=torch.Generator().manual_seed(0)) - 0.5)


def random_bonus(num_rows: int, vocabulary: int) -> Bonus:
    """Of tokens at the ends of tiles too, twice of one, and one of nothing."""
    source = torch.Generator().manual_seed(vocabulary)
    tokens = torch.randint(vocabulary, (num_rows, 5), generator=source)
    tokens[:, 0], tokens[:, 1] = vocabulary - 1, min(1023, vocabulary - 1)
    tokens[:, 3] = tokens[:, 2]
    values = 4 * torch.randn(num_rows, 5, generator=source)
    values[:, 4] = 0.0
    return Bonus(tokens, values)


def field(result: TokenStatistics, name: str) -> Tensor:
    value: Tensor | None = getattr(result, name)
    assert value is not None
    return value


def agree(logits: Tensor, **options: Any) -> TokenStatistics:
    """Fail unless the kernels sample as torch does and err at most twice as much.

    Errors are those against float64, and the rule is that of flash-attention (Dao 2023,
    arXiv:2307.08691). Near ties of a race may fall to either side: none does in these cases.
    """
    logits, options = on(logits), {name: on(value) for name, value in options.items()}
    found = made(logits, STATISTICS, **options)
    plain = by_torch(logits, STATISTICS, **options)
    exact = token_statistics_reference(logits, STATISTICS, **options)
    assert torch.equal(found.sampled, plain.sampled)
    assert torch.equal(found.maximum, plain.maximum)
    for name in NAMES:
        value, base, truth = field(found, name), field(plain, name), field(exact, name)
        assert value.dtype == torch.float32
        assert value.shape == (len(logits),)
        assert torch.equal(value.isfinite(), base.isfinite()), name
        rows = truth.isfinite() & base.isfinite()
        if rows.any():
            error, allowed = (
                (part[rows] - truth[rows]).abs().max() for part in (value.double(), base.double())
            )
            assert error <= 2 * allowed + 2e-7 * max(1.0, float(truth[rows].abs().max())), name
    return found


@pytest.mark.one_in(6)
@pytest.mark.parametrize("vocabulary", [1, 7, 1024, 1025, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_errors_are_those_of_torch(vocabulary: int, dtype: torch.dtype, temperature: float) -> None:
    """One block of rows, with every option at some temperature."""
    logits = random_logits(3, vocabulary, seed=vocabulary).to(dtype)
    agree(
        logits,
        temperature=temperature,
        tokens=torch.arange(3) * 5 % vocabulary,
        key=make_key(3, seed=vocabulary),
        law="sampling" if temperature > 1 else "model",
        scale=random_scale(3) if temperature in (0.3, 5.0) else None,
        scale_statistics=temperature != 0.3,
        bonus=random_bonus(3, vocabulary) if temperature in (0.0, 1.0) else None,
        suppressed=torch.arange(vocabulary) % 5 == 1 if vocabulary > 1024 else None,
    )


@pytest.mark.one_in(9)
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(
    ("law", "dtype"),
    [("model", torch.bfloat16), *(("sampling", dtype) for dtype in DTYPES)],
)
def test_filters_are_those_of_torch(law: str, dtype: torch.dtype, filters: dict[str, Any]) -> None:
    """With every option in one of the laws, and a cut for each of two laws in the other."""
    found = agree(
        random_logits(2, 1100, seed=2).to(dtype),
        temperature=0.7,
        tokens=torch.arange(2) * 5,
        key=make_key(2),
        law=law,
        scale=random_scale(2),
        scale_statistics=False,
        bonus=random_bonus(2, 1100) if law == "model" else None,
        suppressed=torch.arange(1100) % 5 == 1,
        **filters,
    )
    assert (found.sampled % 5 != 1).all()


@pytest.mark.parametrize("filters", [FILTERS[0], *map(slow, FILTERS[1:])])
def test_few_are_kept(filters: dict[str, Any]) -> None:
    """Draws of one row come from the tokens that float64 keeps."""
    row = random_logits(1, 1100, seed=8).bfloat16()
    drawn = made(on(row.expand(12, -1)), (), temperature=1.0, key=on(make_key(12)), **filters)
    kept = _survivors(row.double(), Call(row, (), **filters))[0].nonzero()[:, 0]
    assert torch.isin(drawn.sampled.cpu(), kept).all()
    assert len(drawn.sampled.unique()) > 2


@pytest.mark.parametrize("num_rows", [1, slow(33)])
def test_any_number_of_rows(num_rows: int) -> None:
    """And a row alone has the bits that it has in a batch."""
    options: dict[str, Any] = {"temperature": 0.8, "suppressed": torch.arange(2100) == 2}
    logits, tokens, key = random_logits(33, 2100), torch.arange(33), make_key(33)
    some = NoiseKey(0, *(part[:num_rows] for part in (key.row, key.position, key.draw)))
    agree(logits[:num_rows], tokens=tokens[:num_rows], key=some, **options)
    if num_rows == 1:
        options["suppressed"] = on(options["suppressed"])
        last = NoiseKey(0, *(part[6:] for part in (key.row, key.position, key.draw)))
        few = NoiseKey(0, *(part[6:9] for part in (key.row, key.position, key.draw)))
        long = made(on(logits[6:13]), NAMES[:3], key=on(_first(last, 7)), **options)
        short = made(on(logits[6:9]), NAMES[:3], key=on(few), **options)
        for name in ("sampled", "maximum", *NAMES[:3]):
            assert torch.equal(field(long, name)[:3], field(short, name)), name


def _first(key: NoiseKey, count: int) -> NoiseKey:
    return NoiseKey(key.seed, key.row[:count], key.position[:count], key.draw[:count])


@pytest.mark.parametrize("scale", [slow(0.0), 0.5, slow(6.0)])
def test_many_samples_are_those_of_torch(scale: float) -> None:
    """Flat, broad and peaked rows. At 0 all tiles but the last have one mass, to the bit."""
    logits, key = on(random_logits(32, 2500, scale=scale)), on(make_key(32, torch.arange(32) << 57))
    found, plain = (call(logits, (), temperature=1.0, key=key) for call in (made, by_torch))
    assert torch.equal(found.sampled, plain.sampled)
    assert scale == 6.0 or len(found.sampled.unique()) > 25


@pytest.mark.parametrize(("temperature", "filters"), SLOW_IF_FILTERED)
def test_both_laws_in_one_read(temperature: float, filters: dict[str, Any]) -> None:
    """The model's law beside that of a sample at another temperature, and scales of one only."""
    for law, scaled in product(("model", "sampling"), (True, False)):
        agree(
            random_logits(3, 1500, seed=4).bfloat16(), temperature=temperature / 2, law=law,
            key=make_key(3), scale=random_scale(3), scale_statistics=scaled,
            tokens=torch.arange(3), **filters,
        )  # fmt: skip


@pytest.mark.parametrize("filters", [*UNFILTERED_OR_BOTH, slow({"top_k": 700})])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_ties_and_holes(temperature: float, filters: dict[str, Any]) -> None:
    vocabulary = 2100
    logits = random_logits(6, vocabulary, seed=1).round().bfloat16()
    logits[:, ::3] = -torch.inf
    logits[0] = -torch.inf  # uniform over what is not suppressed
    logits[1] = 0.0
    logits[2, 1030:] = 50.0  # equals across a tile's end
    logits[3] = torch.where(torch.arange(vocabulary) < 1024, -50.0, -torch.inf)
    logits[4, 7], logits[4, 1024:] = 3e38, -torch.inf  # farther below than float32 can say
    suppressed = torch.arange(vocabulary) % 4 == 2
    found = agree(
        logits, temperature=temperature, suppressed=suppressed, key=make_key(6),
        tokens=torch.tensor([2, 1, 1031, 1500, 7, 2099]), law="sampling", **filters,
    )  # fmt: skip
    assert not suppressed[found.sampled.cpu()].any()
    if temperature == 0:
        assert found.sampled[:5].tolist() == [0, 0, 1031, 0, 7]


@pytest.mark.parametrize(("temperature", "filters"), GREEDY_OR_DRAWN)
def test_all_suppressed_but_one(temperature: float, filters: dict[str, Any]) -> None:
    for vocabulary, left in ((5, 3), (2100, 2080)):
        found = agree(
            random_logits(2, vocabulary).bfloat16(), temperature=temperature, key=make_key(2),
            suppressed=torch.arange(vocabulary) != left, tokens=torch.tensor([left, 0]),
            law="sampling", **filters,
        )  # fmt: skip
        assert found.sampled.tolist() == [left, left]
        assert field(found, "confidence").tolist() == [1.0, 1.0]
        assert field(found, "margin").tolist() == [1.0, 1.0]
        assert field(found, "entropy").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, slow(torch.inf)])
@pytest.mark.parametrize(("temperature", "filters"), SLOW_IF_FILTERED)
def test_a_bad_logit_shows_in_its_own_row_only(
    bad: float, temperature: float, filters: dict[str, Any]
) -> None:
    logits = random_logits(5, 1100).bfloat16()
    options: dict[str, Any] = {
        "temperature": temperature,
        "key": on(make_key(5)),
        "law": "sampling",
    }
    options |= {"tokens": on(torch.arange(5)), **filters}
    clean = made(on(logits), STATISTICS, **options)
    logits[2, 1050] = bad
    logits[3, :] = bad  # every token
    for wanted in (STATISTICS, ()):  # without statistics at T = 0 nothing is weighed
        got = made(on(logits), wanted, **options)
        others = on(torch.tensor([0, 1, 4]))
        assert got.maximum.isfinite().tolist() == [True, True, False, False, True]
        assert got.maximum[2].isnan() == (bad != torch.inf)
        assert ((got.sampled >= 0) & (got.sampled < 1100)).all()
        assert torch.equal(got.sampled[others], clean.sampled[others])
        for name in wanted:
            assert field(got, name)[2:4].isnan().all(), name
            assert torch.equal(field(got, name)[others], field(clean, name)[others])


def test_suppressed_logits_may_be_anything() -> None:
    logits = random_logits(3, 1500)
    suppressed = torch.arange(1500) % 7 == 3
    options: dict[str, Any] = {"suppressed": on(suppressed), "tokens": on(torch.arange(3))}
    found = made(on(logits.masked_fill(suppressed, torch.nan)), STATISTICS, **options)
    plain = made(on(logits), STATISTICS, **options)
    for name in ("sampled", "maximum", *NAMES):
        assert torch.equal(field(found, name), field(plain, name)), name


@pytest.mark.parametrize("dtype", [slow(torch.float32), slow(torch.bfloat16)])
def test_strides_and_no_writes(dtype: torch.dtype) -> None:
    base = on(random_logits(8, 2 * 1100).to(dtype))
    views = {
        "columns": base[:4, ::2],
        "rows": base[::2, :1100],
        "odd": base[1:5, 1:1101],
        "transposed": base[:4, :1100].t().contiguous().t(),
        "expanded": base[:1, :1100].expand(4, -1),
        "trained": base[:4, :1100].clone().requires_grad_(),
    }
    banned = on(torch.arange(2201) % 5 == 1)
    for name, logits in views.items():
        before = logits.detach().clone()
        options: dict[str, Any] = {
            "temperature": 0.7, "key": on(make_key(4)), "suppressed": banned[1::2],
            "tokens": on(torch.arange(8))[::2], "scale": on(random_scale(8))[1::2],
        }  # fmt: skip
        found = made(logits, NAMES, **options)
        same = made(before.contiguous(), NAMES, **options)
        assert torch.equal(logits, before)
        for part in ("sampled", "maximum", *NAMES):
            assert torch.equal(field(found, part), field(same, part)), (name, part)
            assert not field(found, part).requires_grad
        assert torch.equal(found.sampled, by_torch(logits, (), **options).sampled)


def test_a_mask_may_start_anywhere() -> None:
    """The kernel loads 8 of it at once, which a GPU does at multiples of 8 bytes only."""
    banned = on(torch.arange(1105) % 5 == 1)[1:]
    logits = on(random_logits(3, 1104))
    found, plain = (call(logits, NAMES[:3], suppressed=banned) for call in (made, by_torch))
    assert torch.equal(found.sampled, plain.sampled)
    for name in NAMES[:3]:
        torch.testing.assert_close(field(found, name), field(plain, name))
    mask = fused._adjustments(banned, None)[0]
    assert mask.data_ptr() % 16 == 0
    assert torch.equal(mask.bool(), banned)


@pytest.mark.parametrize("filters", [UNFILTERED_OR_BOTH[0], slow(UNFILTERED_OR_BOTH[1])])
def test_scales_and_temperatures_of_any_size(filters: dict[str, Any]) -> None:
    logits = random_logits(4, 1300).bfloat16()
    logits[:, ::2] = -torch.inf
    logits[3] = -torch.inf
    scale = torch.tensor([1e-45, 3e38, 1e-20, 1e-38])
    for temperature, law in ((0.0, "model"), (1e-300, "sampling"), (1e300, "sampling")):
        options: dict[str, Any] = {
            "temperature": temperature, "law": law, "scale": on(scale),
            "suppressed": on(torch.arange(1300) % 2 == 0), "key": on(make_key(4)),
            "tokens": on(torch.full((4,), 6)), **filters,
        }  # fmt: skip
        found, plain = (call(on(logits), STATISTICS, **options) for call in (made, by_torch))
        assert (found.sampled % 2 == 1).all()
        for name in NAMES:
            torch.testing.assert_close(field(found, name), field(plain, name), rtol=1e-5, atol=1e-6)


def test_what_only_a_cpu_can_check_is_nan() -> None:
    """No kernel can raise without a wait, and torch on a GPU ends the process."""
    options: dict[str, Any] = {"tokens": on(torch.tensor([50, -1, 3]))}
    found = made(on(random_logits(3, 50)), ("token_probability",), **options)
    assert field(found, "token_probability").isnan().tolist() == [True, True, False]


def test_only_the_wanted_is_returned() -> None:
    logits = on(random_logits(2, 50))
    for wanted in ((), ("margin",), {"entropy", "confidence"}, ["sampled_log_probability"]):
        for temperature in (0.0, 1.0):
            key, tokens = on(make_key(2)), on(torch.tensor([3, 4]))
            options = {"temperature": temperature, "key": key, "tokens": tokens}
            found, plain = (call(logits, wanted, **options) for call in (made, by_torch))
            assert {name for name in NAMES if getattr(found, name) is not None} == set(wanted)
            assert torch.equal(found.sampled, plain.sampled)
            for name in wanted:
                torch.testing.assert_close(field(found, name), field(plain, name))


def test_small_margins_keep_their_digits() -> None:
    """Two tokens 1e-6 apart: 1 - exp(-1e-6) in float32 would keep four digits."""
    logits = on(torch.tensor([[1.0, 1.0 - 1e-6], [1.0, 0.55], [1.0, 0.45], [20.0, 0.0]]))
    found = field(made(logits, ("margin",)), "margin")
    truth = token_statistics_reference(logits, ("margin",)).margin
    assert truth is not None
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, *map(slow, DTYPES[1:])])
def test_the_self_check_passes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so the public function takes the kernels, with the same bits."""
    monkeypatch.setattr(selfcheck, "_FOUND", {})
    call = on(random_logits(2, 1100).to(dtype))
    assert selfcheck.passes(call.device, dtype, by_kernels, torch_path)
    options: dict[str, Any] = {"temperature": 0.8, "key": on(make_key(2))}
    public, direct = (ask(call, NAMES[:3], **options) for ask in (token_statistics, made))
    for name in ("sampled", "maximum", *NAMES[:3]):
        assert torch.equal(field(public, name), field(direct, name))
