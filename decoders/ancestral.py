"""Ancestral sampling: the reverse process on a grid of times."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.alpha import ALPHAS, hitting_time
from dlm.decoders.base import Policy
from dlm.decoders.select import fresh, soonest, top
from dlm.options import boolean, known
from dlm.types import Decision, StepView


class Clock(NamedTuple):
    """Progress of each row within its block."""

    grid: Tensor  # int64 [B], number of grid steps taken
    time: Tensor  # float64 [B], diffusion time reached


@dataclass(frozen=True, slots=True)
class Ancestral(Policy):
    """Commit each masked position with probability rho = (a_s - a_t) / (1 - a_t), from t to s.

    The grid is t_k = 1 - k / N with a_t = alpha(t); N is the block's `steps` budget. This is
    ancestral sampling of Sahoo et al. 2024 (MDLM, arXiv:2406.07524), eq. 7, in two draws: first
    whether a position is revealed, then its token. One draw over the mask and all V tokens with
    float32 noise would sharpen the distribution. Without a budget N goes to infinity, which is
    `first_hitting`.

    Args:
        alpha: "linear", "cosine" or "log_linear".
        cached: skip grid times at which no position of the row is revealed: a network without a
            time input would predict the same again (`ddpm_cache` of MDLM). For L blanks this takes
            N (1 - (1 - 1/N)^L) forward passes on average instead of N.
    """

    alpha: str = "linear"
    cached: bool = True
    paper: ClassVar[str] = "arXiv:2406.07524"
    needs: ClassVar[frozenset[str]] = frozenset({"uniform"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known("alpha", self.alpha, ALPHAS)
        boolean("cached", self.cached)

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """N, or the number of blanks without a budget; with `cached` at most one per blank."""
        steps = torch.where(limit > 0, limit, blanks)
        return torch.minimum(steps, blanks) if self.cached else steps

    def init_state(self, batch: int, length: int) -> Clock:
        """Every block begins at time 1."""
        return Clock(torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.float64))

    def step(self, state: Clock, view: StepView) -> tuple[Clock, Decision]:
        """Commit all positions that unmask in the next grid interval in which any does."""
        noise = view.want("uniform")
        index, time = fresh(view.step, state.grid, 0), fresh(view.step, state.time, 1.0)
        steps = view.limit.clamp(min=1)[:, None]
        hits = hitting_time(self.alpha, time[:, None], noise)
        # Position i unmasks between t_k and t_(k+1) for k = ceil((1 - T_i) N) - 1.
        due = (((1 - hits) * steps).ceil().long() - 1).clamp(min=0).minimum(steps - 1)
        due = torch.maximum(due, index[:, None])
        now, gridded = soonest(due, view.masked)
        if not self.cached:
            now, gridded = index, view.masked & (due == index[:, None])
        unlimited = view.limit == 0
        commit = torch.where(unlimited[:, None], top(-noise, view.masked, 1), gridded)
        after = torch.where(unlimited, index, now + 1)
        first = hits.masked_fill(~view.masked, 0.0).amax(-1)
        time = torch.where(unlimited, first, 1 - after.double() / steps[:, 0])
        return Clock(after, time), Decision(commit, time=time.float())
