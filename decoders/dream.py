"""The decoding algorithms of Dream."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import certainty, fresh, soonest, top
from dlm.options import known
from dlm.types import Decision, StepView

ALGORITHMS = {
    "origin": "uniform",
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
}
GRAIN = 1000  # the time grid ends at 1 / GRAIN


@dataclass(frozen=True, slots=True)
class Dream(Policy):
    """Commit floor(m (1 - s / t)) of m masks from time t to s, and all of them at the last.

    The grid is t_k = 1 - k (1 - 1e-3) / N; N is the block's `steps` budget, or its number of blanks
    without one. Positions are ranked under the tempered and filtered law, by the probability of the
    sampled token ("maskgit_plus"), the margin ("topk_margin") or the negative entropy ("entropy");
    "origin" instead reveals each mask with probability 1 - s / t. Ye et al. 2025 (Dream,
    arXiv:2508.15487) and its released code, whose `alg_temp` is `position_temperature`. Three
    differences: counts use each row's own masks (the code takes the batch mean), grid times that
    would reveal nothing are skipped, and top-k applies before top-p when both are given.
    """

    alg: str = "entropy"
    paper: ClassVar[str] = "arXiv:2508.15487"
    scores: ClassVar[str] = "sampling"

    def __post_init__(self) -> None:
        known("alg", self.alg, ALGORITHMS)

    @property
    def needs(self) -> frozenset[str]:
        """The statistic that the algorithm ranks by."""
        statistic = ALGORITHMS[self.alg]
        return frozenset({statistic} if self.alg == "origin" else {statistic, "position_noise"})

    @property
    def blind(self) -> bool:
        """Whether the score is independent of the sampled token."""
        return self.alg != "maskgit_plus"

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """N forward passes, at most one per blank."""
        return torch.where(limit > 0, limit.minimum(blanks), blanks)

    def init_state(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Grid index k and grid size N, int64 [B] each."""
        return torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)

    def step(
        self, state: tuple[Tensor, Tensor], view: StepView
    ) -> tuple[tuple[Tensor, Tensor], Decision]:
        """Skip empty grid steps, then reveal."""
        index, steps = state
        masks = view.masked.sum(-1)
        fitted = torch.where(view.limit > 0, view.limit, masks)
        steps = torch.where(view.step == 0, fitted, steps)
        delta = (1 - 1 / GRAIN) / steps.double()
        index = fresh(view.step, index, 0)
        if self.alg == "origin":
            index, commit = self.reveal(index, steps, delta, view)
        else:
            index, count = self.count(index, steps, masks)
            scores = view.tempered(certainty(view, ALGORITHMS[self.alg]))
            commit = top(scores, view.masked, count)
        after = index + 1
        time = (1 - after * delta).masked_fill(after >= steps, 0.0)
        return (after, steps), Decision(commit, time=time.float())

    @staticmethod
    def count(index: Tensor, steps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The next grid step that reveals any position, and how many; int64 [B] each."""
        # m (1 - s / t_k) = 999 m / (1000 N - 999 k) in integers; at least 1 from k = `first` on.
        due, end = (GRAIN - 1) * masks, GRAIN * steps
        first = -((due - end) // (GRAIN - 1))
        index = torch.maximum(index, first).minimum(steps - 1)
        share = (due // (end - (GRAIN - 1) * index)).clamp(min=1)
        return index, torch.where(index + 1 >= steps, masks, share)

    @staticmethod
    def reveal(
        index: Tensor, steps: Tensor, delta: Tensor, view: StepView
    ) -> tuple[Tensor, Tensor]:
        """The next grid step at which any mask is due, int64 [B], and those due, bool [B, W]."""
        time = (1 - index * delta)[:, None]
        hits = time * (1 - view.want("uniform").double())
        due = (((1 - hits) / delta[:, None]).ceil().long() - 1).minimum(steps[:, None] - 1)
        due = torch.maximum(due, index[:, None])
        return soonest(due, view.masked)
