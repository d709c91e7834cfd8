"""The functions of `ranking`, each as one launch of a Triton kernel, and when they apply.

Shapes: as in `ranking`.
"""

from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels import fused_canvas

COLUMNS: Final = 1024
"""Most columns that are compared pairwise."""
PAIRS: Final = 4096
"""Pairs that a program compares."""

_FLOATS: Final = (torch.float32, torch.float64)


def covers(scores: Tensor, *masks: Tensor, count: Tensor | int = 0) -> bool:
    """Whether the kernel applies to these scores, masks of columns and counts."""
    if not fused_canvas.covers(scores) or scores.dim() != 2 or scores.numel() == 0:
        return False
    # Chosen columns score infinity, which integers lack.
    kinds = _FLOATS if len(masks) > 1 else (*_FLOATS, torch.int64)
    if scores.dtype not in kinds or scores.shape[1] > COLUMNS:
        return False
    if isinstance(count, Tensor) and not _like(count, torch.int64, scores, scores.shape[:1]):
        return False
    return all(_like(mask, torch.bool, scores, scores.shape) for mask in masks)


def _like(part: Tensor, dtype: torch.dtype, scores: Tensor, shape: torch.Size) -> bool:
    return part.dtype == dtype and part.shape == shape and part.device == scores.device


def descending(scores: Tensor, allowed: Tensor) -> Tensor:
    """`ranking.descending`."""
    return _launch(scores, allowed, torch.int64, ORDER=True)


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """`ranking.rank`."""
    return _launch(scores, allowed, torch.int64)


def top(scores: Tensor, allowed: Tensor, count: Tensor | int) -> Tensor:
    """`ranking.top`."""
    return _launch(scores, allowed, torch.bool, count=count, TOP=True)


def at_least(chosen: Tensor, scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """`ranking.at_least`."""
    return _launch(scores, allowed, torch.bool, chosen=chosen, count=count, TOP=True)


def _launch(
    scores: Tensor,
    allowed: Tensor,
    dtype: torch.dtype,
    *,
    chosen: Tensor | None = None,
    count: Tensor | int = 0,
    **flags: Any,
) -> Tensor:
    """Launch the kernel."""
    from dlm.kernels.triton_ranking import rank_kernel

    (rows, width), flag = scores.shape, fused_canvas.flags
    out = scores.new_empty((rows, width), dtype=dtype)
    columns = 1 << (width - 1).bit_length()
    some = min(columns, PAIRS // columns)
    each = count.contiguous() if isinstance(count, Tensor) else None
    with torch.cuda.device_of(scores):
        rank_kernel[(rows, -(-width // some))](
            *(scores.contiguous(), flag(allowed), None if chosen is None else flag(chosen)),
            *(each, 0 if each is not None else int(min(count, width))),
            *(out.view(torch.uint8) if dtype == torch.bool else out, width),
            **{"ORDER": False, "TOP": False} | flags,
            COLUMNS=columns,
            SOME=some,
            num_warps=4,
        )
    return out
