"""Stepwise decoding, several of its steps a forward, proved by the forward that follows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.select import rank
from dlm.options import integer, known
from dlm.types import Decision, StepView

MOST = 64  # branches
SCORES = ("confidence", "margin", "entropy", "position")


@dataclass(frozen=True, slots=True)
class SSD(Stateless):
    """Commit what one step after the other would, in fewer forwards.

    Self-speculative decoding of Gao et al. 2025 (SSD, arXiv:2510.04147), whose tree is one chain
    here. A step commits the best positions by `score`: its share of a `steps` budget, or one. The
    next best are a draft of the steps that follow: branch b = 1, ..., C - 1 of the next forward has
    those of the first b of them filled, branch 0 none. Where branch b would now commit just what
    branch b + 1 holds, positions and tokens, stepwise decoding goes there, too: the row goes on
    with the last branch that a chain of such proofs reaches, and commits the step of that one.

    At temperature 0 tokens are those of `low_confidence`, `margin`, `entropy` or `left_to_right` by
    name of the score, up to the rounding of a larger batch; with `refresh_every` a cache is made
    again at other steps. At a temperature they follow the same law, but with "confidence", which
    ranks by what was drawn: there the draws of a forward are shared by its steps.

    Args:
        branches: C, steps of a forward at most, up to 64; 1 is stepwise decoding.
        score: "confidence", "margin", minus "entropy", or "position", from left to right.
    """

    branches: int = 4
    score: str = "confidence"
    paper: ClassVar[str] = "arXiv:2510.04147"

    def __post_init__(self) -> None:
        integer("branches", self.branches, least=1, most=MOST)
        known("score", self.score, SCORES)

    @property
    def needs(self) -> frozenset[str]:
        """What positions are ranked by."""
        return frozenset({self.score} - {"position"})

    def order(self, view: StepView) -> Tensor:
        """At which step of its block each mask is due, int64; the step to come for other columns.

        Of m blanks in S steps the first m mod S take one more than the others.
        """
        masked, shape = view.masked, view.masked.shape
        if self.score == "position":
            scores = -view.positions.float()
        else:
            value = view.want(self.score)
            scores = -value if self.score == "entropy" else value
        place = rank(scores.flatten(0, -2), masked.flatten(0, -2)).view(shape)
        blanks, masks = (masked | view.editable).sum(-1), masked.sum(-1)
        steps = torch.where(view.limit > 0, view.limit, blanks).clamp(min=1)
        size, more = (each[..., None] for each in (blanks // steps, blanks % steps))
        index = (blanks - masks)[..., None] + place.where(masked, 0)
        late = more + (index - more * (size + 1)) // size.clamp(min=1)
        return torch.where(index < more * (size + 1), index // (size + 1), late)

    def choose(self, state: None, view: StepView) -> Tensor:
        """The last branch that stepwise decoding is seen to reach, int64 [B]."""
        step = self.order(view)
        now = view.masked & (step == step.where(view.masked, 1 << 40).amin(-1, keepdim=True))
        filled = view.masked[:, :-1] & ~view.masked[:, 1:]
        same = ~filled | (view.sampled[:, :-1] == view.tokens[:, 1:])
        proved = ((now[:, :-1] == filled) & same).all(-1) & filled.any(-1)
        return proved.long().cumprod(-1).sum(-1)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """The step that is due, and a draft of those that follow."""
        step = self.order(view)
        first = step.where(view.masked, 1 << 40).amin(-1, keepdim=True)
        commit = view.masked & (step == first)
        if self.branches == 1:
            return None, Decision(commit)
        depth = torch.arange(self.branches, device=step.device)[:, None]
        draft = (view.masked & ~commit)[:, None] & (step[:, None] <= first[:, None] + depth)
        return None, Decision(commit, lookahead=draft)
