"""The part of each row that may change now, and writing a decision back to the canvas.

Shapes: B rows, L canvas, W window.
"""

from dataclasses import dataclass, fields

from torch import Tensor

from dlm.canvas import Canvas
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.kernels.canvas import Rows
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
    by = fused_canvas if fused_canvas.covers(canvas.tokens, width) else plain
    whole = rows(canvas, canvas.tokens)
    return Window(*by.locate(whole, block, hold, mask_id, block_length, width, cross_block))


def write(tokens: Tensor, view: StepView, decision: Decision, mask_id: int) -> Tensor:
    """Apply commits, then edits, then remasks, to a new canvas."""
    by = fused_canvas if fused_canvas.covers(tokens) else plain
    made: Tensor = by.write(tokens, view.positions, view.sampled, decision.changes, mask_id)
    return made


def rows(canvas: Canvas, tokens: Tensor) -> Rows:
    """What the kernels read of a canvas, with tokens int64 [B, L] in the place of its own."""
    return Rows(tokens, canvas.blank, canvas.start, canvas.origin, canvas.stop, canvas.budget)
