"""A plain rule, several of its steps a forward, proved by the forward that follows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BRANCHES, Stateless
from dlm.decoders.select import SCORES, at_least, certainty, rank
from dlm.options import integer, known, number
from dlm.types import Decision, StepView

ORDERS = (*SCORES, "position")


@dataclass(frozen=True, slots=True)
class SSD(Stateless):
    """Commit what several forwards of a plain rule would by one.

    Self-speculative decoding of Gao et al. 2025 (SSD, arXiv:2510.04147), with drafts of our own.
    The plain rule commits the best by `score`: one, or a step's share of a `steps` budget; with a
    `threshold` also all p(sampled) >= `threshold`. A branch of the next forward has none filled, or
    the next best, as many as k = 1, 2, ... such steps take without a threshold, or, but left to
    right, those with the last one passed over for the next. Where the plain rule comes from a
    branch to just what another holds, it goes there, too: a row goes on with the last one reached.

    At temperature 0 tokens are those of `low_confidence`, `margin`, `entropy` or `left_to_right` by
    name of the score, and with a threshold, "confidence" and no `steps` of `threshold`, up to the
    rounding of a larger batch and a cache made anew at other steps by `refresh_every`. At others
    they follow the same law, unless confidence has a say: draws are shared by a forward's steps.

    Args:
        branches: up to 64; 1 is the plain rule.
        score: "confidence", "margin", minus "entropy", or "position", from left to right.
        threshold: of confidence; None has only the best committed.
    """

    branches: int = 4
    score: str = "confidence"
    threshold: float | None = None
    paper: ClassVar[str] = "arXiv:2510.04147"

    def __post_init__(self) -> None:
        integer("branches", self.branches, least=1, most=MOST_BRANCHES)
        known("score", self.score, ORDERS)
        if self.threshold is not None:
            number("threshold", self.threshold, least=0.0)

    @property
    def needs(self) -> frozenset[str]:
        """What positions are ranked by, and held to."""
        held = set() if self.threshold is None else {"confidence"}
        return frozenset({self.score} - {"position"} | held)

    def due(self, view: StepView, masks: Tensor, ahead: Tensor) -> Tensor:
        """How many of `masks` the next `ahead` [C] steps take, the first more; int64 [..., C]."""
        blanks = (view.masked | view.editable).sum(-1)
        steps = torch.where(view.limit > 0, view.limit, blanks).clamp(min=1)
        size, more, index = blanks // steps, blanks % steps, blanks - masks
        step = torch.maximum(index // (size + 1), (index - more) // size.clamp(min=1))
        ends = step[..., None] + ahead
        return ends * size[..., None] + torch.minimum(ends, more[..., None]) - index[..., None]

    def now(self, view: StepView) -> tuple[Tensor, Tensor]:
        """What the plain rule commits, and what it ranks by; of the shape of `view.masked`."""
        masked, left = view.masked, self.score == "position"
        scores = -view.positions.float() if left else certainty(view, self.score)
        sure = torch.zeros_like(masked)
        if self.threshold is not None:
            sure = masked & (view.want("confidence") >= self.threshold)
        least = self.due(view, masked.sum(-1), masked.new_ones(1, dtype=torch.int64)).flatten()
        now, by, lines = (each.flatten(0, -2) for each in (sure, scores, masked))
        return at_least(now, by, lines, least).view(masked.shape), scores

    def choose(self, state: None, view: StepView) -> Tensor:
        """The last branch that the plain rule is seen to reach, int64 [B]."""
        now, before, after = self.now(view)[0], view.masked[:, :, None], view.masked[:, None]
        same = ~now[:, :, None] | (view.sampled[:, :, None] == view.tokens[:, None])
        reached = (same & (after == (before & ~now[:, :, None]))).all(-1)
        stay = torch.arange(self.branches, device=now.device)
        goes = torch.where(reached.any(-1), reached.long().argmax(-1), stay)
        for _ in range(self.branches.bit_length()):  # twice as far each time
            goes = goes.gather(1, goes)
        return goes[:, 0]

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """What is due, and drafts of what follows."""
        commit, scores = self.now(view)
        if self.branches == 1:
            return None, Decision(commit)
        rest, fixed = view.masked & ~commit, self.score == "position"  # an order without surprises
        chain = self.branches - (0 if fixed else max(0, self.branches // 2 - 1))
        branch = torch.arange(self.branches, device=rest.device)
        ahead = torch.where(branch < chain, branch, branch - chain + 1)
        many, swaps = self.due(view, rest.sum(-1), ahead)[..., None], (branch >= chain)[:, None]
        place = rank(scores, rest)[:, None]
        draft = (place < many - swaps.long()) | (swaps & (place == many))
        return None, Decision(commit, lookahead=draft & rest[:, None])
