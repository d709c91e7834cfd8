"""The kernels of attention against torch; `test_triton_scan.py` runs these under the interpreter.

DLM_TEST_DEVICE=cuda runs the same cases on a GPU. float16, as the interpreter has no products of
bfloat16.
"""

import os
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dlm.kernels import fused_layers, layers

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
LONG = pytest.mark.slow  # seconds under the interpreter


def normal(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=source).to(DEVICE, torch.float16)


def near(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Against float64 at most twice the error of torch, the rule of flash-attention's tests."""
    scale = exact.abs().max()
    error, allowed = ((part.double() - exact).abs().max() for part in (found, plain))
    assert found.isfinite().all()
    assert error <= 2 * allowed + 1e-3 * scale, (float(error), float(allowed), float(scale))
    assert error <= 0.02 * scale


def mask_of(kind: str, seen: int) -> Tensor | None:
    """None, rows of unlike lengths or begins, or stairs, whose first query sees nothing."""
    columns = torch.arange(seen, device=DEVICE)
    if kind == "none":
        return None
    if kind == "late":
        return (columns >= torch.tensor([[0], [seen // 2]], device=DEVICE))[:, None, None]
    if kind == "rows":
        return (columns < torch.tensor([[seen], [seen // 2]], device=DEVICE))[:, None, None]
    steps = torch.tensor([60, 25], device=DEVICE)[:, None] * torch.arange(5, device=DEVICE)
    return (columns < steps[:, :, None])[:, None]


@pytest.mark.parametrize("kind", ["none", "rows", "stairs"])
@pytest.mark.parametrize("seen", [9, 256, 300, *(pytest.param(n, marks=LONG) for n in (513, 1300))])
def test_attention(seen: int, kind: str) -> None:
    query, mask = normal(2, 5, 4, 32), mask_of(kind, seen)
    keys, values = (normal(2, seen + 3, 2, 32, seed=s) for s in (1, 2))
    keys[:, seen:] = values[:, seen:] = torch.nan  # memory that belongs to nobody
    found = fused_layers.attend(query, keys, values, seen, mask, 0.3)
    plain = layers.attend(query, keys, values, seen, mask, 0.3)
    exact = layers.attend(query.double(), keys.double(), values.double(), seen, mask, 0.3)
    if kind == "stairs":
        assert not found[:, 0].any()
        found, plain, exact = (part[:, 1:] for part in (found, plain, exact))
    near(found, plain, exact)


@pytest.mark.parametrize(
    ("queries", "width"), [(1, 16), (33, 128), pytest.param(64, 64, marks=LONG)]
)
def test_attention_of_all_sizes(queries: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for the parts of one row at a time."""
    monkeypatch.setattr(fused_layers, "SCRATCH", 1)
    query, keys, values = (
        normal(2, queries, 4, width),
        *(normal(2, 270, 2, width, seed=s) for s in (1, 2)),
    )
    mask = mask_of("rows", 270)
    found = fused_layers.attend(query, keys, values, 270, mask, 0.2)
    plain = layers.attend(query, keys, values, 270, mask, 0.2)
    near(
        found, plain, layers.attend(query.double(), keys.double(), values.double(), 270, mask, 0.2)
    )


@pytest.mark.skipif(DEVICE != "cpu", reason="a compiled kernel cannot be watched")
@pytest.mark.parametrize(
    ("kind", "seen", "every", "some"),
    [
        ("rows", 300, 3, 3 + 2),
        ("rows", 900, 6, 6 + 4),
        ("late", 300, 3, 3 + 2),
        ("stairs", 300, 3, 2 + 1),
    ],
)
def test_keys_that_no_query_sees_are_not_read(
    kind: str, seen: int, every: int, some: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where programs wait for others, in parts of 128 keys, then 256; that changes no bit."""
    from dlm.kernels import triton_attention

    query, mask = normal(2, 5, 4, 32), mask_of(kind, seen)
    keys, values = (normal(2, seen, 2, 32, seed=s) for s in (1, 2))
    look = Mock(wraps=triton_attention.look)
    monkeypatch.setattr(triton_attention, "look", look)
    monkeypatch.setattr(fused_layers, "AT_ONCE", 2 * every * 4)  # rows, parts, heads
    whole = fused_layers.attend(query, keys, values, seen, mask, 0.3)
    assert look.call_count == 2 * every * 4
    monkeypatch.setattr(fused_layers, "AT_ONCE", 2 * every * 4 - 1)
    torch.use_deterministic_algorithms(True)  # what is not written is NaN
    try:
        found = fused_layers.attend(query, keys, values, seen, mask, 0.3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, whole)
    assert look.call_count == (2 * every + some) * 4


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    query, keys, values = normal(2, 5, 4, 32), normal(2, 600, 2, 32), normal(2, 600, 2, 32, seed=1)
    mask = torch.arange(600, device=DEVICE) < torch.tensor([[600], [70]], device=DEVICE)
    every = fused_layers.attend(query, keys, values, 600, mask[:, None, None], 0.3)
    alone = fused_layers.attend(
        query[1:], keys[1:, :80].contiguous(), values[1:, :80].contiguous(), 70, None, 0.3
    )
    assert torch.equal(alone[0], every[1])
