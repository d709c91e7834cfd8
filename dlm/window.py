"""The window: the part of each row that may change now, and writing decisions to the canvas.

Shapes: B rows, L canvas, W window.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.kernels.canvas import Rows
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Window:
    """The active block of each row and the blocks ahead, or all blocks up to it."""

    block: Tensor  # int64 [B]
    start: Tensor  # int64 [B], canvas position of the block's start
    positions: Tensor  # int64 [B, W], clamped to the canvas
    tokens: Tensor  # int64 [B, W]
    masked: Tensor  # bool [B, W]
    blank: Tensor  # bool [B, W], blanks of the window, committed or not
    limit: Tensor  # int64 [B], forward passes the block may take, 0 for no limit

    def within(self, end: Tensor) -> "Window":
        """The same, with canvas positions from `end`, int64 [B], on closed to changes."""
        column = torch.arange(self.masked.shape[1], device=end.device)
        inside = column < (end - self.start)[:, None]
        return replace(self, masked=self.masked & inside, blank=self.blank & inside)

    def narrow(self, width: int) -> "Window":
        """The same, cut to its first columns."""
        if width == self.masked.shape[1]:
            return self
        parts = ("positions", "tokens", "masked", "blank")
        return replace(self, **{name: getattr(self, name)[:, :width] for name in parts})

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
    ahead: int,
) -> Window:
    """Gather the window of each row at its own offset.

    The active block is the one that holds the row's first mask, but never an earlier one than
    before: a policy that remasks an earlier block has until the end of this one to fill it again.

    Args:
        canvas: the rows.
        mask_id: id that marks a blank.
        block: int64 [B], the block active so far, -1 before the first forward pass.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        block_length: positions of a block.
        width: W, the same at every forward pass.
        cross_block: whether the window reaches back to the first blank.
        ahead: blocks after the active one that the window also holds.
    """
    by = fused_canvas if fused_canvas.covers(canvas.tokens, width) else plain
    whole = rows(canvas, canvas.tokens)
    return Window(*by.locate(whole, block, hold, mask_id, block_length, width, cross_block, ahead))


def write(tokens: Tensor, view: StepView, decision: Decision, mask_id: int) -> Tensor:
    """Apply commits, then edits, then remasks, to a copy of the canvas."""
    by = fused_canvas if fused_canvas.covers(tokens) else plain
    made: Tensor = by.write(tokens, view.positions, view.sampled, decision.changes, mask_id)
    return made


def padded(tokens: Tensor, canvas: Canvas, stop_ids: Tensor, eos_id: int, mask_id: int) -> Tensor:
    """Tokens [B, L] with all masks after a row's first stop token replaced by end of text.

    Args:
        tokens: int64 [B, L], as written.
        canvas: whose rows they are.
        stop_ids: int64 [S].
        eos_id: of end of text.
        mask_id: that marks a blank.
    """
    ends = canvas.blank & (tokens[..., None] == stop_ids).any(-1)
    behind = ends.cumsum(-1) > 0
    return tokens.masked_fill(canvas.blank & behind & (tokens == mask_id), eos_id)


def rows(canvas: Canvas, tokens: Tensor) -> Rows:
    """The kernels' view of a canvas, with tokens int64 [B, L] in place of its own."""
    return Rows(tokens, canvas.blank, canvas.start, canvas.origin, canvas.stop, canvas.budget)
