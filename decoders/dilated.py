"""Commit on a grid that gets finer, independently of the model's predictions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.select import NEVER, at_least
from dlm.options import integer
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Dilated(Stateless):
    """Commit index k of a block in the first round t with k mod ceil(K / base^t) = 0.

    A block of K positions takes ceil(log_base K) rounds, at least one; the last round has stride 1.
    Positions that are committed together lie far apart: K = 32 commits 2, 2, 4, 8, 16. Each forward
    pass commits at least `quota` positions, taking those of the next rounds first. Dilated
    unmasking of Luxembourg et al. 2025 (DUS, arXiv:2506.19037).
    """

    base: int = 2
    paper: ClassVar[str] = "arXiv:2506.19037"
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("base", self.base, least=2)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the masks of the earliest round that still has any."""
        later = self.rounds(view.masked | view.editable).masked_fill(~view.masked, NEVER)
        now = view.masked & (later == later.amin(-1, keepdim=True))
        return None, Decision(at_least(now, -later, view.masked, view.quota))

    def rounds(self, inside: Tensor) -> Tensor:
        """Round of each column, int64 [B, W].

        Args:
            inside: bool [B, W], columns of the block's blanks; the block ends at its last blank.
        """
        column = torch.arange(inside.shape[-1], device=inside.device)
        length = ((column + 1) * inside).amax(-1, keepdim=True)
        found = torch.full(inside.shape, NEVER, device=inside.device)
        stride, number = length, 0
        power = 1
        while power < inside.shape[-1] or number == 0:
            number, power = number + 1, power * self.base
            stride = -(-length // power)
            found = found.where(column % stride.clamp(min=1) != 0, found.clamp(max=number))
        return found
