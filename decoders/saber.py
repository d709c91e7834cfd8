"""Commit more as context builds up, and remask where confidence fell."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least, exact_sum, top
from dlm.options import integer, known
from dlm.types import Decision, StepView


class Preset(NamedTuple):
    """Differences between the authors' code, their paper and cache-safe decoding."""

    round_up: bool  # remask max(n // 2, ceil(a / mu)), else max(1, a // mu)
    own_token: bool  # a committed position's confidence is that of its token, else of the best
    current: bool  # the threshold averages over committed positions, else over all ever committed
    drops_only: bool  # remask only where confidence fell
    everywhere: bool  # remask in earlier blocks too
    spare_new: bool  # never remask what this forward pass committed


PRESETS = {
    "reference": Preset(True, False, False, False, True, False),
    "paper": Preset(False, True, True, False, True, False),
    "safe": Preset(False, True, True, True, False, True),
}


class Confidences(NamedTuple):
    """Confidences of the window's columns, and sums over the blocks before it."""

    last: Tensor  # float32 [B, W], in the previous forward pass; -inf where there was none
    committed: Tensor  # float32 [B, W], at the last commit; -1 where never committed
    behind: Tensor  # float64 [B], sum over earlier blocks; 0 while the window includes them
    earlier: Tensor  # int64 [B], number of terms in that sum


@dataclass(frozen=True, slots=True)
class Saber(Policy):
    """Commit c > mean confidence of past commits, n at least; remask the r that fell most.

    Adaptive acceleration: commit A = {i masked: c_i > tau}, or the `n` best where A is smaller. tau
    is the mean confidence that committed positions had when they were committed (1 at first).

    Backtracking: remask the r = min(max(n // 2, ceil(a / mu)), a - 1) committed positions whose
    confidence dropped most since the last forward pass, a = |A|. Dong et al. 2025 (Saber,
    arXiv:2510.18165), Alg. 1. Every forward pass gains a position.

    Args:
        n: fewest commits of a forward pass.
        mu: a forward that commits mu times as many remasks one more.
        preset: "reference" follows the authors' code (except that it never picks beyond the masked
            positions when fewer than n are left), "paper" the paper, "safe" remasks only inside
            the block and only where confidence fell, so that KV caches stay valid.
    """

    n: int = 2
    mu: int = 8
    preset: str = "reference"
    paper: ClassVar[str] = "arXiv:2510.18165"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"confidence", "token_probability", "position_noise"}
    )
    mutates_committed: ClassVar[bool] = True
    takes_caches_with: ClassVar[str] = "{'preset': 'safe'}"

    def __post_init__(self) -> None:
        integer("n", self.n, least=1)
        integer("mu", self.mu, least=1)
        known("preset", self.preset, PRESETS)

    @property
    def cross_block(self) -> bool:
        """Whether earlier blocks can be remasked."""
        return PRESETS[self.preset].everywhere

    def init_state(self, batch: int, length: int) -> Confidences:
        """Confidence 0 before the first forward pass, as in the authors' code."""
        last = torch.zeros(batch, length, dtype=torch.float32)
        none = torch.zeros(batch, dtype=torch.int64)
        return Confidences(last, last - 1, none.double(), none)

    def step(self, state: Confidences, view: StepView) -> tuple[Confidences, Decision]:
        """Accelerate, then backtrack."""
        preset = PRESETS[self.preset]
        confidence = view.want("confidence")
        if preset.own_token:
            confidence = confidence.where(view.masked, view.want("token_probability"))
        if not preset.everywhere:
            state = moved_on(state, view)
        commit = self.accelerate(confidence, state, view)
        committed = torch.where(commit, confidence, state.committed)
        candidates = view.editable if preset.spare_new else view.editable | commit
        fall = confidence - state.last
        fall = fall.where(fall.isfinite(), float("inf"))
        if preset.drops_only:
            candidates = candidates & (fall < 0)
        remask = top(-fall, candidates, self.backtrack(commit, view))
        if preset.current:
            committed = committed.masked_fill(remask, -1.0)
        inside = view.masked | view.editable
        last = confidence.masked_fill(~inside, -float("inf"))
        # A position committed and remasked in the same forward pass stays masked.
        both = commit & remask
        state = state._replace(last=last, committed=committed)
        return state, Decision(commit & ~both, remask=remask & ~both)

    def accelerate(self, confidence: Tensor, state: Confidences, view: StepView) -> Tensor:
        """Positions above the mean confidence of past commits, at least the n best; bool [B, W]."""
        past = state.committed >= 0
        count = state.earlier + past.sum(-1)
        mean = (state.behind + exact_sum(state.committed, past)) / count.clamp(min=1)
        bar = torch.where(count > 0, mean, 1.0)[:, None]
        sure = view.masked & (confidence > bar)
        least = view.quota.clamp(min=self.n)
        return at_least(sure, view.tempered(confidence), view.masked, least)

    def backtrack(self, commit: Tensor, view: StepView) -> Tensor:
        """How many to remask, int64 [B]: fewer than committed, and none once all is committed."""
        accepted = commit.sum(-1)
        if PRESETS[self.preset].round_up:
            count = (-(-accepted // self.mu)).clamp(min=self.n // 2)
        else:
            count = (accepted // self.mu).clamp(min=1)
        count = count.minimum(accepted - 1).clamp(min=0)
        complete = ~(view.masked & ~commit).any(-1)  # as at the end of a budget
        return count.masked_fill(complete, 0)


def moved_on(state: Confidences, view: StepView) -> Confidences:
    """Add the window's commits to the sums of earlier blocks, for rows that begin a block."""
    past = (state.committed >= 0) & (view.step == 0)[:, None]
    return state._replace(
        committed=state.committed.masked_fill(past, -1.0),
        behind=state.behind + exact_sum(state.committed, past),
        earlier=state.earlier + past.sum(-1),
    )
