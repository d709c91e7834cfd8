"""Try several choices of positions, and keep the one that tells most about the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BRANCHES, Policy
from dlm.decoders.select import top, total
from dlm.options import integer, known, number
from dlm.types import Decision, StepView

VARIANTS = ("info_gain", "lookum")
LEAST = 1e-3  # of a temperature: below it scores have no bits left beside the noise


@dataclass(frozen=True, slots=True)
class InfoGain(Policy):
    """Commit those `quota` positions, of `branches` choices, that leave the least uncertain rest.

    Information gain sampling (arXiv:2602.18176). Choice 0 are the most confident positions, the
    others are drawn without replacement from softmax(confidence / `candidate_temperature`). The
    next forward evaluates the canvas after each, and the row goes on with the largest
        J = -H' - C,   H' = mean of H_i over the masks left,   C = sum of H_i over those committed,
    entropies in nats, C by the forward before ("lookum" is J = -H'); the first on a tie. The first
    forward of a block commits nothing, and the last one what is left: in all at most as many as
    without branches, of C times the tokens (`query_tokens`). Where masks are sure, c >=
    `threshold`, the most confident `quota` of those are committed at once, and nothing is tried.

    As in the authors' code but for H', there of all masks of the row, here of the block's; and at
    a temperature choices share the tokens drawn, so that J compares positions alone. The
    `block_length=None` of `generate` takes all masks.

    Args:
        threshold: of confidence, from which on a mask needs no choices; above 1 all do.
        branches: choices, up to 64; 1 is `low_confidence`.
        candidate_temperature: that choices are drawn at (there `position_temperature`).
        variant: "info_gain", or "lookum", which asks what is left and not what it cost.
    """

    threshold: float = 0.8
    branches: int = 8
    candidate_temperature: float = 0.2
    variant: str = "info_gain"
    paper: ClassVar[str] = "arXiv:2602.18176"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("branches", self.branches, least=1, most=MOST_BRANCHES)
        number("candidate_temperature", self.candidate_temperature, least=LEAST)
        known("variant", self.variant, VARIANTS)

    @property
    def needs(self) -> frozenset[str]:
        """What choices are made and judged by."""
        return frozenset({"confidence", "entropy", "branch_noise"} - self.idle)

    @property
    def idle(self) -> set[str]:
        """What one branch has no use for."""
        return {"entropy", "branch_noise"} if self.branches == 1 else set()

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """One for each blank at most: the first commits nothing, the last what is left."""
        return blanks

    def init_state(self, batch: int, length: int) -> Tensor:
        """C of each branch, nats, float64 [B, C]."""
        return torch.zeros(batch, self.branches, dtype=torch.float64)

    def choose(self, state: Tensor, view: StepView) -> Tensor:
        """The branch with the largest J, int64 [B]."""
        masks = view.masked.sum(-1)
        mean = total(view.want("entropy"), view.masked) / masks.clamp(min=1)
        cost = state if self.variant == "info_gain" else torch.zeros_like(state)
        return (-cost - mean).argmax(-1)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """What is sure, or all that is left where no more is due; else choices for the next."""
        confidence, masked = view.want("confidence"), view.masked
        if self.branches == 1:
            return state, Decision(top(confidence, masked, view.quota))
        sure = masked & (confidence >= self.threshold)
        ends = masked.sum(-1) <= view.quota
        commit = top(confidence, masked & (sure | ends[:, None]), view.quota)
        rest = masked & ~commit.any(-1)[:, None]
        noise = view.want("branch_noise").clone()
        noise[:, 0] = 0.0
        scores = confidence[:, None] / self.candidate_temperature + noise
        lines, count = scores.flatten(0, 1), view.quota.repeat_interleave(self.branches)
        tries = top(lines, rest.repeat_interleave(self.branches, 0), count).view(scores.shape)
        return total(view.want("entropy")[:, None], tries), Decision(commit, lookahead=tries)
