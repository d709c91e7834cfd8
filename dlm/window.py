"""The part of each row that may change now, and writing a decision back to the canvas.

Shapes: B rows, L canvas, W window.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Window:
    """The active block of each row, or all blocks up to it."""

    block: Tensor  # int64 [B]
    start: Tensor  # int64 [B], canvas position where the block begins
    positions: Tensor  # int64 [B, W], clamped to the canvas
    tokens: Tensor  # int64 [B, W]
    masked: Tensor  # bool [B, W]
    blank: Tensor  # bool [B, W], blanks of the window, committed or not
    limit: Tensor  # int64 [B], forwards this block may take, 0 for no limit

    def select(self, index: Tensor, length: int) -> "Window":
        """The rows `index`, on a canvas of `length` columns."""
        kept = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        kept["positions"] = kept["positions"].clamp(max=length - 1)
        return Window(**kept)


def locate(
    canvas: Canvas,
    mask_id: int,
    *,
    block: Tensor,
    hold: Tensor,
    block_length: int,
    width: int,
    cross_block: bool,
) -> Window:
    """Gather the window of each row at its own offset.

    The active block is the one that holds the row's first mask, but never one before it was: a
    policy that remasks an earlier block has until the end of this one to fill it again.

    Args:
        canvas: the rows.
        mask_id: id that marks a blank.
        block: int64 [B], the block active so far, -1 before the first forward.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        block_length: positions of a block.
        width: W, the same at every forward.
        cross_block: whether the window reaches back to the first blank.
    """
    open_ = canvas.blank & (canvas.tokens == mask_id)
    first = (open_.int().argmax(-1) - canvas.origin).div(block_length, rounding_mode="floor")
    block = torch.where(hold, block, torch.maximum(block, first))
    start = canvas.origin + block * block_length
    begin = canvas.start if cross_block else start
    columns = begin[:, None] + torch.arange(width, device=begin.device)
    inside = columns < torch.minimum(start + block_length, canvas.stop)[:, None]
    positions = columns.clamp(max=canvas.tokens.shape[1] - 1)
    return Window(
        block=block,
        start=start,
        positions=positions,
        tokens=canvas.tokens.gather(1, positions),
        masked=open_.gather(1, positions) & inside,
        blank=canvas.blank.gather(1, positions) & inside,
        limit=canvas.budget.gather(1, block[:, None])[:, 0],
    )


def write(tokens: Tensor, view: StepView, decision: Decision, mask_id: int) -> Tensor:
    """Apply commits, then edits, then remasks, to a new canvas."""
    change, fresh = decision.commit, view.sampled
    if decision.edit is not None:
        change = change | decision.edit
    if decision.remask is not None:
        change = change | decision.remask
        fresh = fresh.masked_fill(decision.remask, mask_id)
    inside, column = on_canvas(view.positions, tokens.shape[1])
    return torch.where(inside & change.gather(1, column), fresh.gather(1, column), tokens)


def on_canvas(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Which canvas positions [B, L] the window covers, and the column of each to gather.

    Gathering into the canvas, not scattering from the window: the columns of a short last block
    lie beyond the row, and no canvas position asks for them.
    """
    column = torch.arange(width, device=positions.device) - positions[:, :1]
    inside = (column >= 0) & (column < positions.shape[1])
    return inside, column.clamp(0, positions.shape[1] - 1)
