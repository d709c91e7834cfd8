"""The functions of `canvas`, each as one launch of a Triton kernel, and when they apply.

A step of an 8B network took 4.8 ms on an H200. 0.2 ms of these were 165 launches outside the layers
and the vocabulary: a launch from a CUDA graph takes 1.2 us, whatever it does.

Shapes: as in `canvas`.
"""

from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels.canvas import Rows, Stops
from dlm.kernels.capability import capability

ON_CPU = False
"""Whether CPU tensors use the kernels. For tests under Triton's interpreter."""
ON_CUDA = True
"""Whether CUDA tensors do, where a kernel can run."""
BLOCK: Final = 1024
"""Canvas columns processed at a time, whatever its length."""
PLACES: Final = 4096
"""Most columns of a window, and most columns of several windows processed at a time."""

_CAPABILITY: Final = (8, 0)  # as for the kernels of the statistics


def covers(x: Tensor, width: int = 1) -> bool:
    """Whether the kernels apply to plain tensors of this device and windows of this width."""
    if width > PLACES or x.shape[0] == 0:
        return False
    if x.device.type == "cpu":
        return ON_CPU
    if not (ON_CUDA and x.is_cuda and type(x) is Tensor and _runs_on(x.device.index)):
        return False
    from dlm.kernels.canvas_check import passes

    return passes(x.device)


def _runs_on(index: int) -> bool:
    """Whether a CUDA device can run the kernels."""
    found = capability(index)
    return found is not None and found >= _CAPABILITY


def flags(mask: Tensor) -> Tensor:
    """Bools as contiguous bytes."""
    return mask.contiguous().view(torch.uint8)


def write(
    tokens: Tensor,
    positions: Tensor,
    sampled: Tensor,
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    mask_id: int,
) -> Tensor:
    """`canvas.write`."""
    from dlm.kernels.triton_canvas import write_kernel

    (rows, length), width = tokens.shape, positions.shape[1]
    out = tokens.new_empty((rows, length))
    with torch.cuda.device_of(tokens):
        write_kernel[(rows, -(-length // BLOCK))](
            *(*_lined(tokens), positions.contiguous(), sampled.contiguous(), *_bytes(*changes)),
            *(out, length, width, mask_id),
            BLOCK=BLOCK,
            num_warps=4,
        )
    return out


def stop(
    rows: Rows, begin: Tensor, hold: Tensor, mask_id: int, block_length: int, stops: Stops
) -> tuple[Tensor, Tensor]:
    """`canvas.stop`."""
    from dlm.kernels.triton_canvas import stop_kernel

    count, length = rows.tokens.shape
    out = None if stops.ids is None else rows.tokens.new_empty((count, length))
    done = hold.new_empty(count)
    with torch.cuda.device_of(hold):
        stop_kernel[(count,)](
            *(*_lined(rows.tokens), *_lined(rows.blank)),
            *(part.contiguous() for part in (rows.start, rows.origin, begin)),
            *(flags(hold), stops.ids, out, done.view(torch.uint8)),
            *(length, mask_id, stops.eos_id, block_length),
            0 if stops.ids is None else len(stops.ids),
            BY_BLOCK=stops.settled == "block",
            BY_ROW=stops.settled == "row",
            BLOCK=BLOCK,
            num_warps=4,
        )
    return rows.tokens if out is None else out, done


def locate(
    rows: Rows,
    block: Tensor,
    hold: Tensor,
    mask_id: int,
    block_length: int,
    width: int,
    cross_block: bool,
    ahead: int = 0,
) -> tuple[Tensor, ...]:
    """`canvas.locate`."""
    from dlm.kernels.triton_canvas import locate_kernel

    count, length = rows.tokens.shape
    # Three allocations, not views of one: torch aligns each, and kernels specialise on alignment.
    active, start, limit = (block.new_empty(count) for _ in range(3))
    positions, tokens = (block.new_empty((count, width)) for _ in range(2))
    masked, blank = (hold.new_empty((count, width)) for _ in range(2))
    with torch.cuda.device_of(block):
        locate_kernel[(count,)](
            *(*_lined(rows.tokens), *_lined(rows.blank)),
            *(part.contiguous() for part in (rows.start, rows.origin, rows.stop)),
            *(*_lined(rows.budget), block.contiguous(), flags(hold)),
            *(active, start, limit),
            *(positions, tokens, masked.view(torch.uint8), blank.view(torch.uint8)),
            *(length, rows.budget.shape[1], width, mask_id, block_length),
            block_length * (1 + ahead),
            CROSS=cross_block,
            COLUMNS=_room(width),
            BLOCK=BLOCK,
            num_warps=4,
        )
    return active, start, positions, tokens, masked, blank, limit


def stretch(
    tokens: Tensor,
    blank: Tensor,
    begin: Tensor,
    end: Tensor,
    count: int,
    room: int,
    halves: int,
) -> tuple[Tensor, ...]:
    """`canvas.stretch`."""
    from dlm.kernels.triton_canvas import stretch_kernel

    rows, length = tokens.shape
    seen, places = (tokens.new_empty((rows, count)) for _ in range(2))
    given, inside = blank.new_empty((rows, count)), begin.new_empty(rows)
    slots = tokens.new_empty((halves * rows, count))
    with torch.cuda.device_of(tokens):
        stretch_kernel[(rows, -(-count // BLOCK))](
            *(*_lined(tokens), *_lined(blank), begin.contiguous(), end.contiguous()),
            *(seen, places, given.view(torch.uint8), slots, inside, length, count, rows, room),
            HALVES=halves,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return seen, places, given, slots, inside


def look(
    masked: Tensor, blank: Tensor, limit: Tensor, spent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`canvas.look`."""
    from dlm.kernels.triton_canvas import look_kernel

    rows, width = masked.shape
    quota, editable = limit.new_empty(rows), masked.new_empty((rows, width))
    nothing = limit.new_empty((rows, width))
    with torch.cuda.device_of(masked):
        look_kernel[(rows,)](
            *(*_bytes(masked, blank), limit.contiguous(), spent.contiguous()),
            *(quota, editable.view(torch.uint8), nothing, width),
            COLUMNS=_room(width),
            num_warps=4,
        )
    return quota, editable, nothing


def judge(
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    masked: Tensor,
    editable: Tensor,
    advances: bool,
) -> tuple[Tensor, ...]:
    """`canvas.judge`."""
    from dlm.kernels.triton_canvas import judge_kernel

    rows, width = masked.shape
    broken = masked.new_empty(3)
    columns = _room(width)
    with torch.cuda.device_of(masked):
        judge_kernel[(1,)](
            *(*_bytes(*changes, masked, editable), broken.view(torch.uint8), rows, width),
            COLUMNS=columns,
            SOME=PLACES // columns,
            num_warps=8,
        )
    return broken.unbind()[: 3 if advances else 2]


def _lined(x: Tensor) -> tuple[Tensor, int]:
    """A matrix with contiguous columns, bools as bytes, and its row stride in elements."""
    x = x if x.stride(1) == 1 else x.contiguous()
    return x.view(torch.uint8) if x.dtype == torch.bool else x, x.stride(0)


def _bytes(*masks: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if mask is None else flags(mask) for mask in masks)


def _room(count: int) -> int:
    """The smallest power of 2 that is at least the count."""
    return 1 << (count - 1).bit_length()
