"""Limits how far a forward pass sees: masks far after the active block are left out of a row.

Shapes: B rows, L canvas.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.progress import Progress


class Horizon:
    """Ends each row a number of tokens after what may change now, until the next block begins.

    The sliding window of DPad (Chen et al. 2025, arXiv:2508.14148), without its dropout of masks in
    the window. Fixed tokens remain visible, with everything before them.
    """

    def __init__(self, window: int | None, span: int) -> None:
        """Take the tokens visible after a block, None for all, and the positions that may change.

        The latter are those of all blocks that may be open at a time.
        """
        self.window = window
        self.span = span

    def ends(self, canvas: Canvas, progress: Progress) -> Tensor:
        """One past the last column of each row that its next forward pass sees, int64 [B].

        Args:
            canvas: the rows.
            progress: their state.
        """
        assert self.window is not None
        columns = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
        given = ~canvas.blank & (columns < canvas.length[:, None])
        last = ((columns + 1) * given).amax(-1)
        end = progress.window.start + (self.span + self.window)
        return torch.minimum(torch.maximum(end, last), canvas.length)

    def seen(self, canvas: Canvas, progress: Progress) -> Canvas:
        """The rows, ending at the horizon."""
        if self.window is None:
            return canvas
        return replace(canvas, length=self.ends(canvas, progress))

    def narrowed(self, canvas: Canvas, progress: Progress, columns: int) -> Canvas:
        """The same, cut to the first columns; `columns` must cover what every row sees."""
        seen = self.seen(canvas, progress)
        return replace(seen, tokens=seen.tokens[:, :columns], blank=seen.blank[:, :columns])
