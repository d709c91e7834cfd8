"""Try several sets of positions, and keep the one that is most informative about the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BRANCHES, Policy
from dlm.decoders.select import top, total
from dlm.options import integer, known, number
from dlm.types import Decision, StepView

VARIANTS = ("info_gain", "lookum")
LEAST = 1e-3  # of a temperature: below it float32 scores have too few bits left for the noise


@dataclass(frozen=True, slots=True)
class InfoGain(Policy):
    """Commit those `quota` positions, of `branches` choices, that leave the least uncertain rest.

    Information gain sampling (arXiv:2602.18176). Choice 0 is the most confident positions; the
    others are drawn without replacement from softmax(confidence / `candidate_temperature`). The
    next forward pass evaluates the canvas after each choice, and the row continues with the largest
        J = -H' - C,   H' = mean of H_i over the masks left,   C = sum of H_i over those committed,
    entropies in nats, C from the previous forward pass ("lookum" is J = -H'); ties go to the first.
    A block's first forward pass commits nothing, and its last one all that is left. A block takes
    at most as many forward passes as without branches, each over `branches` times the tokens
    (`query_tokens`). If any masks are certain, c >= `threshold`, the most confident `quota` of them
    are committed at once, and no choices are tried.

    Differences from the authors' code: H' averages over the masks of the block, not of the row
    (`block_length=None` of `generate` makes them equal); and at a temperature all choices share the
    sampled tokens, so that J compares positions alone.

    Args:
        threshold: confidence at which masks need no choices; above 1 all do.
        branches: number of choices, up to 64; 1 is `low_confidence`.
        candidate_temperature: temperature of the choices (there `position_temperature`).
        variant: "info_gain", or "lookum", which ignores the cost C.
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
        """The statistics that choices are drawn and judged by."""
        return frozenset({"confidence", "entropy", "branch_noise"} - self.idle)

    @property
    def idle(self) -> set[str]:
        """Statistics that a single branch does not use."""
        return {"entropy", "branch_noise"} if self.branches == 1 else set()

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """At most one per blank: the first commits nothing, the last all that is left."""
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
        """Commit certain positions, or all that is left at the end; else propose choices."""
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
