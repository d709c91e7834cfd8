"""How much of its window each row may change, where that is more than the active block.

Shapes: B rows, W window.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.contract import opening
from dlm.deciding import Deciding
from dlm.progress import Progress


class Opening:
    """Asks the decoder before each forward pass how many columns of the window are open.

    Other columns can neither be committed, nor are they computed with a cache: a row computes what
    it has open, whatever the other rows of its batch have.
    """

    def __init__(self, decide: Deciding, block_length: int, width: int, *, static: bool) -> None:
        """Take the block and window sizes.

        With `static`, open columns are rounded to few counts, as each has its own recording.
        """
        self.traits = decide.traits
        self.decide = decide
        self.block_length = block_length
        self.width = width
        self.static = static

    def __call__(self, canvas: Canvas, progress: Progress) -> Progress:
        """Set the columns that the next forward pass may change; at least one block is open."""
        if self.traits.open is None or progress.open is None:
            return progress
        view = self.decide.shown(self.decide.meter.glance(canvas, progress))
        state, columns = opening(self.traits.open(progress.state, view), view, self.traits)
        window = progress.window
        end = window.start + columns.clamp(min(self.block_length, self.width), self.width)
        end = torch.maximum(progress.open, torch.minimum(end, canvas.stop))
        fresh = progress.fresh
        if fresh is not None:  # no forward pass has seen the fixed tokens there yet
            columns = torch.arange(self.width, device=end.device)
            fresh = fresh | (columns >= (progress.open - window.start)[:, None])
        return replace(progress, state=state, window=window.within(end), open=end, fresh=fresh)

    def most(self, progress: Progress) -> Tensor:
        """Most open columns of any unfinished row, int64 [1]."""
        assert progress.open is not None
        each = progress.open - progress.window.start
        return each.masked_fill(progress.done, 0).amax(0, keepdim=True)

    def whole(self, columns: int) -> int:
        """Round columns up to whole blocks, at least one."""
        blocks = max(1, -(-columns // self.block_length))
        if self.static:
            blocks = 1 << (blocks - 1).bit_length()
        return min(blocks * self.block_length, self.width)
