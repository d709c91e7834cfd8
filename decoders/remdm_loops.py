"""The remasking loops of ReMDM for LLaDA: fill a part, remask and refill, fill the rest.

Shapes: B rows, W window.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.decoders.select import fresh, top
from dlm.types import Decision, StepView

UNLIMITED = 1 << 30  # forward passes of a row without a budget


class Remasking(NamedTuple):
    """Progress of each row within its block."""

    moves: Tensor  # int64 [B], number of loop moves made
    confidence: Tensor  # float32 [B, W], of each token when it was committed


@dataclass(frozen=True, slots=True)
class Loops:
    """`count` loops over `size` tokens, which start at the fraction `ratio` of the block."""

    ratio: float
    size: int
    count: int

    def probable(self, state: Remasking, view: StepView) -> tuple[Remasking, Decision]:
        """One forward pass remasks the least probable tokens, and the next fills as many."""
        moves = fresh(view.step, state.moves, 0)
        masks, committed = view.masked.sum(-1), view.editable.sum(-1)
        target, left = self.target(masks + committed), forwards_left(view)
        filling = (moves == 0) & (committed < target)
        no_time = (moves % 2 == 0) & (left < 2 + (masks > 0).long())
        no_time |= masks + committed <= self.size
        looping = ~filling & ~no_time & (moves < 2 * self.count) & (target > 0)
        remasking = looping & (moves % 2 == 0)
        share = torch.where(filling, target - committed, masks).clamp(max=self.size)
        count = torch.maximum(share, view.quota).masked_fill(remasking, 0)
        least = -view.want("token_probability")
        remask = top(least, view.editable, self.size * remasking.long())
        commit = top(view.tempered(view.want("confidence")), view.masked, count)
        moves = torch.where(looping, moves + 1, moves)
        again = (moves < 2 * self.count) & ~no_time & (left > 2) & (target > 0)
        full = count >= masks
        state = Remasking(moves, state.confidence)
        return state, Decision(commit, remask=remask, hold=full & again & ~remasking)

    def remembered(self, state: Remasking, view: StepView) -> tuple[Remasking, Decision]:
        """Remask the least confident tokens after each fill, so that a fill makes up for them.

        A token that would be remasked at once is not committed.
        """
        moves = fresh(view.step, state.moves, 0)
        masks, committed = view.masked.sum(-1), view.editable.sum(-1)
        blanks = masks + committed
        target, left = self.target(blanks), forwards_left(view)
        filling = (moves == 0) & (committed < target)
        share = torch.where(filling, target - committed, masks).clamp(max=self.size)
        count = torch.maximum(share, view.quota)
        confidence = view.want("confidence")
        commit = top(view.tempered(confidence), view.masked, count)
        kept = torch.where(commit, confidence, state.confidence)
        over = masks - count.minimum(masks)
        # The later forward passes have to fill the masks left over and those remasked now.
        time = (left - 1) * torch.maximum(view.quota, torch.full_like(left, self.size))
        back = (moves < self.count) & (committed + count >= target) & (target > 0)
        back &= (blanks > self.size) & (time >= over + self.size)
        remask = top(-kept, view.editable | commit, self.size * back.long())
        moves = torch.where(back, moves + 1, moves)
        return Remasking(moves, kept), Decision(commit & ~remask, remask=remask & ~commit)

    def target(self, blanks: Tensor) -> Tensor:
        """Tokens committed before the first loop, int64 [B]; 0 means no loops."""
        return (self.ratio * blanks.double()).floor().long()


def forwards_left(view: StepView) -> Tensor:
    """Forward passes left for each row's block, including this one, int64 [B]."""
    return torch.where(view.limit > 0, view.limit - view.step, UNLIMITED)
