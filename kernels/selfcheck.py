"""Check before first use that a fast path agrees with the plain one on a device.

A kernel that a compiler or a driver gets wrong on one GPU generation raises no error; it returns
wrong tokens. Therefore, before a process first uses a device and dtype, both paths answer three
small calls. Each costs two or three launches, the last one some more, and one compilation per
Triton cache.

Shapes: N rows, V vocabulary.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Final

import torch
from torch import Tensor

from dlm.kernels.call import Call, Path, TokenStatistics
from dlm.kernels.checks import STATISTICS
from dlm.kernels.noise import NoiseKey
from dlm.kernels.tiles import TILE, Bonus

ROWS: Final = 6
VOCABULARY: Final = 2 * TILE + 452  # three tiles, the last one partly padding
SHARE: Final = 0.8
"""p of top-p in the call that uses it."""
TOLERANCE: Final = 2e-5
"""For statistics, which are sums in another order. Samples have to be equal."""

_FOUND: dict[tuple[torch.device, torch.dtype], bool] = {}
"""Results of this process, kept because every check costs as much again."""


def passes(device: torch.device, dtype: torch.dtype, fast: Path, plain: Path) -> bool:
    """Whether `fast` can be trusted on a device: it gave the same answers as `plain` there.

    Checked once per process for each device and dtype. A failure issues a RuntimeWarning with the
    reason. While a CUDA graph is captured no check can run: the result is False, and is not
    remembered.

    Raises:
        torch.OutOfMemoryError: There is no memory for the rows of the check.
    """
    found = _FOUND.get((device, dtype))
    if found is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        with may_wait(device):
            wrong = difference(device, dtype, fast, plain)
        found = _FOUND[device, dtype] = wrong is None
        if wrong is not None:
            warnings.warn(
                f"the Triton kernels fail their self check on {device} in {dtype}, and torch "
                f"takes their place: {wrong}",
                RuntimeWarning,
                stacklevel=3,
            )
    return found


@contextmanager
def may_wait(device: torch.device) -> Iterator[None]:
    """Allow the host to wait for a device, whatever `torch.cuda.set_sync_debug_mode` is set to.

    An error of that mode would count as a kernel failure for the whole process. If the mode is off,
    it stays untouched: torch warns whenever it is first set.
    """
    mode = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if not mode:
        yield
        return
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def difference(device: torch.device, dtype: torch.dtype, fast: Path, plain: Path) -> str | None:
    """What the two paths disagree on, or None."""
    for call in calls(device, dtype):
        expected = plain(call)
        try:
            found = fast(call)
            wrong = _wrong_field(found, expected)
        except torch.OutOfMemoryError:  # says nothing about the kernels
            raise
        except Exception as error:  # compiler, driver and launch errors must not end the run
            return f"{type(error).__name__}: {error}"
        if wrong is not None:
            every = call.temperature
            told = every.tolist() if isinstance(every, Tensor) else every
            return f"another {wrong} at temperature {told}"
    return None


def calls(device: torch.device, dtype: torch.dtype) -> Iterator[Call]:
    """The arg max, a draw with all possible adjustments, and one from what filters keep.

    The last one has a temperature per row, as the runtime draws.
    """
    source = torch.Generator().manual_seed(0)
    drawn = 3 * torch.randn(ROWS, VOCABULARY, generator=source)
    logits = drawn.to(device, dtype)
    index = torch.arange(ROWS, device=device)
    suppressed = torch.arange(VOCABULARY, device=device) % 7 == 3
    yield Call(logits, ("confidence", "margin", "entropy"), suppressed=suppressed)
    yield Call(
        logits,
        STATISTICS,
        temperature=0.7,
        suppressed=suppressed,
        tokens=index + TILE,
        key=NoiseKey(-7, index << 33, index, index),
        scale=1 + index.float() / ROWS,
        scale_statistics=False,
        bonus=Bonus(index[:, None] * 400, torch.full((ROWS, 1), 2.0, device=device)),
    )
    # No prefix of these rows has a mass within 1e-3 of SHARE, so all paths cut alike.
    yield Call(
        logits,
        STATISTICS,
        temperature=0.5 + index.float() / 8,
        top_k=50,
        top_p=SHARE,
        suppressed=suppressed,
        tokens=index,
        key=NoiseKey(-7, index << 33, index, index),
        law="sampling",
        scale=1 + index.float() / ROWS,
        scale_statistics=False,
    )


def _wrong_field(found: TokenStatistics, expected: TokenStatistics) -> str | None:
    """The first field that differs, or None."""
    for field in fields(TokenStatistics):
        value, truth = getattr(found, field.name), getattr(expected, field.name)
        if (value is None) != (truth is None) or (truth is not None and not _same(value, truth)):
            return field.name
    return None


def _same(value: Tensor, truth: Tensor) -> bool:
    if truth.dtype == torch.int64:
        return torch.equal(value, truth)
    return torch.allclose(value, truth, rtol=TOLERANCE, atol=TOLERANCE / 10)
