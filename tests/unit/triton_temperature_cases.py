"""A temperature of each row in the fused kernels. `test_triton_scan.py` runs this file.

Shapes: N rows, V vocabulary.
"""

import os
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.kernels import STATISTICS, NoiseKey, TokenStatistics, fused
from dlm.kernels.call import Call
from dlm.kernels.statistics import by_kernels, by_torch

# numpy warns where a float32 is meant to overflow or to be NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
NAMES = ("maximum", *sorted(STATISTICS))
# Shares that no prefix here meets to 5e-3: the last digit would decide.
FILTERS: tuple[dict[str, Any], ...] = ({}, {"top_k": 5}, {"top_k": 30, "top_p": 0.7701})
TEMPERATURES = (0.3, 0.7, 1.0, 1.7, 5.0)
ROWS = len(TEMPERATURES)  # more than a program of the scan has
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ON_CPU", True)


def call_of(rows: slice, temperature: float | Tensor, dtype: torch.dtype, **options: Any) -> Call:
    """Of some of 5 rows, with all that a kernel reads of each."""
    source = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(ROWS, 1100, generator=source)).to(dtype)
    index = torch.arange(ROWS)[rows].to(DEVICE)
    call = Call(
        logits.to(DEVICE)[rows], STATISTICS, temperature, key=NoiseKey(7, index, index, index),
        tokens=index, scale=(0.5 + index / 4) if options.pop("scaled", False) else None, **options,
    )  # fmt: skip
    assert fused.covers(call)
    return call


def each_of(*temperatures: float) -> Tensor:
    return torch.tensor(temperatures, dtype=torch.float32, device=DEVICE)


def same(found: TokenStatistics, expected: TokenStatistics, rows: slice = slice(None)) -> None:
    for name in ("sampled", *NAMES):
        assert torch.equal(getattr(found, name), getattr(expected, name)[rows]), name


@pytest.mark.parametrize(
    ("law", "filters"),
    [
        ("model", FILTERS[0]), ("sampling", FILTERS[2]),
        slow("sampling", FILTERS[0]), slow("model", FILTERS[1]), slow("model", FILTERS[2]),
    ],
)  # fmt: skip
def test_a_row_has_the_bits_that_a_number_gives_it(law: str, filters: dict[str, Any]) -> None:
    """Whether all have that temperature or each its own, and what torch draws."""
    options: dict[str, Any] = {**filters, "law": law, "scaled": law == "model"}
    dtype = torch.float32 if law == "model" else torch.bfloat16
    call = call_of(slice(None), each_of(*TEMPERATURES), dtype, **options)
    mixed = by_kernels(call)
    assert torch.equal(mixed.sampled, by_torch(call).sampled)
    for row in (2, 4):  # of two programs of the scan; the kernels are given no number that is 1
        one, temperature = slice(row, row + 1), TEMPERATURES[row]
        same(by_kernels(call_of(one, temperature, dtype, **options)), mixed, one)


@pytest.mark.parametrize("scaled", [False, slow(True)])
def test_temperatures_of_any_size(scaled: bool) -> None:
    """They are bounded as a number is."""
    every = (1e-45, 1e-35, 1.0, 1e35, 3e38)
    mixed = by_kernels(call_of(slice(None), each_of(*every), torch.float32, scaled=scaled))
    for row, temperature in ((0, every[0]), (4, every[4])):
        one = slice(row, row + 1)
        same(by_kernels(call_of(one, temperature, torch.float32, scaled=scaled)), mixed, one)


def test_laws_that_are_one_are_weighed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sampling law is both, unless the scale is of one alone."""
    seen: list[int] = []
    scan = fused._scan

    def counted(call: Call, laws: Any, *more: Any, **options: Any) -> Any:
        seen.append(len(laws))
        return scan(call, laws, *more, **options)

    monkeypatch.setattr(fused, "_scan", counted)
    each = each_of(*TEMPERATURES[:2])
    for law, apart in product(("model", "sampling"), (False, True)):
        options = {"law": law, "scaled": apart, "scale_statistics": not apart}
        by_kernels(call_of(slice(2), each, torch.float32, **options))
    assert seen == [2, 2, 1, 2]
