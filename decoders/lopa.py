"""Try several filling orders at once, and keep the one that leaves the most certain rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BRANCHES, Policy
from dlm.decoders.select import SCORES, at_least, certainty, rank, top, total
from dlm.options import integer, known, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class LoPA(Policy):
    """Commit p(sampled) >= `threshold`, and of `branches` continuations keep the most certain one.

    Lookahead parallel decoding of Xu et al. 2025 (LoPA, arXiv:2512.16229). The committed tokens
    form the anchor, branch 0. Branch b = 1, ..., C - 1 also fills the b-th best remaining position.
    The next forward pass evaluates all branches, and each row continues with the largest
        alpha a_b + (1 - alpha) F_b.
    F_b is the mean score over the least certain `share` of the branch's masks (1 without masks).
    a_b is the score of the position that the branch filled, when it was filled; a_0 = 1. Ties go to
    the lowest b, with the anchor last. A forward pass evaluates C times as many tokens
    (`query_tokens`). This costs least where it is bound by reading weights: one row on a GPU.

    The defaults of score, alpha and share are those of the authors' code, which keep the anchor
    unless another branch is clearly better. Their experiments use "entropy", alpha = 0, share = 1
    and 2 to 14 branches. Their threshold is exclusive, this one inclusive.

    Args:
        threshold: minimum confidence to commit.
        branches: C, including the anchor, up to 64; 1 is `threshold` with ranking by `score`.
        score: what ranks positions and judges branches: "confidence", "margin", or "entropy"
            (negated, nats).
        alpha: weight of the score of the filled position, 0 to 1.
        share: fraction of a branch's masks, above 0 and up to 1; at least one mask counts.
    """

    threshold: float = 0.9
    branches: int = 4
    score: str = "confidence"
    alpha: float = 0.5
    share: float = 0.5
    paper: ClassVar[str] = "arXiv:2512.16229"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("branches", self.branches, least=1, most=MOST_BRANCHES)
        known("score", self.score, SCORES)
        number("alpha", self.alpha, least=0.0, most=1.0)
        if number("share", self.share, least=0.0, most=1.0) == 0:
            raise ValueError(f"share must be above 0, got {self.share!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The score, and what the threshold reads."""
        return frozenset({"confidence", "position_noise", self.score})

    def init_state(self, batch: int, length: int) -> Tensor:
        """Score of the position that each branch filled, float32 [B, C]."""
        return torch.ones(batch, self.branches)

    def choose(self, state: Tensor, view: StepView) -> Tensor:
        """The branch with the largest weighted score, int64 [B]."""
        scores, masked = certainty(view, self.score), view.masked
        masks = masked.sum(-1)
        count = (masks.double() * self.share).long().clamp(min=1)
        lowest = top(-scores.flatten(0, 1), masked.flatten(0, 1), count.flatten())
        future = torch.where(masks > 0, total(scores, lowest.view(masked.shape)) / count, 1.0)
        value = self.alpha * state.double() + (1 - self.alpha) * future
        return (value.roll(-1, 1).argmax(-1) + 1) % self.branches

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit positions at or above the threshold, at least one, and propose branches."""
        scores = certainty(view, self.score)
        sure = view.masked & (view.want("confidence") >= self.threshold)
        commit = at_least(sure, view.tempered(scores), view.masked, view.quota)
        if self.branches == 1:
            return state, Decision(commit)
        rest = view.masked & ~commit
        place = rank(scores, rest)[:, None] + 1
        tries = (place == torch.arange(self.branches, device=place.device)[:, None]) & rest[:, None]
        made = scores[:, None].masked_fill(~tries, 0.0).sum(-1)  # one position per branch
        made[:, 0] = 1.0
        return made, Decision(commit, lookahead=tries)
