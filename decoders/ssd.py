"""Draft several steps of a plain rule, and verify them in the next forward pass."""

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
    """Commit in one forward pass what a plain rule commits in several.

    Self-speculative decoding of Gao et al. 2025 (SSD, arXiv:2510.04147), with our own drafts. The
    plain rule commits the best by `score`: one, or a step's share of a `steps` budget, and with a
    `threshold` also all p(sampled) >= `threshold`. A branch of the next forward pass fills nothing,
    or the next best positions of k = 1, 2, ... steps without a threshold, or (unless the order is
    left to right) these with the last one replaced by its successor. If the plain rule leads from
    a branch to exactly what another holds, it reaches that one; the row keeps the last reached.

    At temperature 0 tokens are those of `low_confidence`, `margin`, `entropy` or `left_to_right` by
    score, or of `threshold` with "confidence", a threshold and no `steps`, up to the rounding of a
    larger batch, and unless `refresh_every` refreshes a cache at other steps. At other temperatures
    the distribution is the same, unless confidence counts: the steps of a pass share their draws.

    Args:
        branches: up to 64; 1 is the plain rule.
        score: "confidence", "margin", "entropy" (negated), or "position" (left to right).
        threshold: minimum confidence; None commits only the best.
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
        """What positions are ranked by and compared with the threshold."""
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
        """What the plain rule commits, and its scores; both shaped like `view.masked`."""
        masked, left = view.masked, self.score == "position"
        scores = -view.positions.float() if left else certainty(view, self.score)
        sure = torch.zeros_like(masked)
        if self.threshold is not None:
            sure = masked & (view.want("confidence") >= self.threshold)
        least = self.due(view, masked.sum(-1), masked.new_ones(1, dtype=torch.int64)).flatten()
        now, by, lines = (each.flatten(0, -2) for each in (sure, scores, masked))
        return at_least(now, by, lines, least).view(masked.shape), scores

    def choose(self, state: None, view: StepView) -> Tensor:
        """The last branch that the plain rule verifiably reaches, int64 [B]."""
        now, before, after = self.now(view)[0], view.masked[:, :, None], view.masked[:, None]
        same = ~now[:, :, None] | (view.sampled[:, :, None] == view.tokens[:, None])
        reached = (same & (after == (before & ~now[:, :, None]))).all(-1)
        stay = torch.arange(self.branches, device=now.device)
        goes = torch.where(reached.any(-1), reached.long().argmax(-1), stay)
        for _ in range(self.branches.bit_length()):  # doubles the distance
            goes = goes.gather(1, goes)
        return goes[:, 0]

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit what is due, and draft what follows."""
        commit, scores = self.now(view)
        if self.branches == 1:
            return None, Decision(commit)
        rest, fixed = view.masked & ~commit, self.score == "position"  # a known order
        chain = self.branches - (0 if fixed else max(0, self.branches // 2 - 1))
        branch = torch.arange(self.branches, device=rest.device)
        ahead = torch.where(branch < chain, branch, branch - chain + 1)
        many, swaps = self.due(view, rest.sum(-1), ahead)[..., None], (branch >= chain)[:, None]
        place = rank(scores, rest)[:, None]
        draft = (place < many - swaps.long()) | (swaps & (place == many))
        return None, Decision(commit, lookahead=draft & rest[:, None])
