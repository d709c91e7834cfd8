"""Windows that move with the first mask, and may cross the ends of blocks.

Shapes: B rows, W window.
"""

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BLOCKS, Stateless
from dlm.decoders.select import at_least
from dlm.types import StepView


class Sliding(Stateless):
    """A policy that looks at the masks near the first one only."""

    __slots__ = ()

    sliding: bool  # whether a window goes on in the blocks after the active one

    @property
    def ahead(self) -> int:
        """Number of blocks after the active one that a window may reach."""
        return MOST_BLOCKS - 1 if self.sliding else 0

    def near(self, view: StepView) -> Tensor:
        """The masks of the window, bool [B, W], from a view without statistics."""
        raise NotImplementedError

    def open(self, state: None, view: StepView) -> tuple[None, Tensor]:
        """Columns up to the last mask of the window."""
        near = self.near(view)
        column = torch.arange(1, near.shape[1] + 1, device=near.device)
        return None, column.where(near, 0).amax(-1)

    def commits(self, view: StepView, near: Tensor, sure: Tensor, scores: Tensor) -> Tensor:
        """All that is sure, one position of the window at least, and what a budget requires.

        A budget widens the window to as many masks as it requires. That of a sliding window is the
        active block's, and is met there.

        Args:
            view: what is seen.
            near: masks of the window, bool [B, W].
            sure: those to commit in any case, bool [B, W].
            scores: float [B, W], the highest is committed first.

        Returns:
            Bool [B, W].
        """
        owed, masked = view.quota, view.masked
        if self.sliding:
            sure = at_least(sure, scores, near, torch.ones_like(owed))
            owed = owed.where(view.limit > 0, 0)
        front = near | (masked & (masked.cumsum(-1) <= owed[:, None]))
        if self.sliding:
            column = torch.arange(masked.shape[1], device=masked.device)
            front = front & (column < view.block_length)
        return sure | at_least(sure & front, scores, front, owed)
