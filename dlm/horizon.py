"""How far a forward sees a row, where masks far behind the active block are left out of it.

Shapes: B rows, L canvas.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.progress import Progress


class Horizon:
    """Ends each row some tokens behind what may change now, until the next block begins.

    The sliding window of DPad (Chen et al. 2025, arXiv:2508.14148), without its dropout of masks in
    the window. What is given is seen, and all in front of it.
    """

    def __init__(self, window: int | None, span: int) -> None:
        """Take the tokens that are seen behind a block, None for all, and positions of a block.

        Of all blocks that may be open at a time.
        """
        self.window = window
        self.span = span

    def ends(self, canvas: Canvas, progress: Progress) -> Tensor:
        """One past the last column of each row that its next forward sees, int64 [B].

        Args:
            canvas: the rows.
            progress: where they stand.
        """
        assert self.window is not None
        columns = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
        given = ~canvas.blank & (columns < canvas.length[:, None])
        last = ((columns + 1) * given).amax(-1)
        end = progress.window.start + (self.span + self.window)
        return torch.minimum(torch.maximum(end, last), canvas.length)

    def seen(self, canvas: Canvas, progress: Progress) -> Canvas:
        """The rows as far as they are seen."""
        if self.window is None:
            return canvas
        return replace(canvas, length=self.ends(canvas, progress))

    def narrowed(self, canvas: Canvas, progress: Progress, columns: int) -> Canvas:
        """The same on their first columns, at least as many as any row is seen on."""
        seen = self.seen(canvas, progress)
        return replace(seen, tokens=seen.tokens[:, :columns], blank=seen.blank[:, :columns])
