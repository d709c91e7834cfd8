"""Exact sampling of a masked diffusion model with one forward pass per token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.alpha import ALPHAS, hitting_time
from dlm.decoders.base import Policy
from dlm.decoders.history import Summary, log_ratio
from dlm.decoders.select import descending, fresh, rank, top
from dlm.options import integer, known
from dlm.types import Adjustment, Decision, StepView


class Hitting(NamedTuple):
    """Diffusion time of each row, and what extrapolation remembers."""

    time: Tensor  # float64 [B], diffusion time of the last unmasking
    before: Summary | None  # prediction of the previous forward pass, for order 2
    gap: Tensor | None  # int64 [B], positions committed since that forward pass


@dataclass(frozen=True, slots=True)
class FirstHitting(Policy):
    """Commit the `quota` positions that unmask next in the reverse process, chosen uniformly.

    First-hitting sampler of Zheng et al. 2024 (arXiv:2409.02908), section 4.1. With n masked
    positions at time tau, the next one unmasks at lambda(tau') = lambda(tau) - E / n, E ~ Exp(1),
    lambda = ln(1 - alpha), at a uniformly random position. At temperature 1 and one token per
    forward pass this samples the model exactly: it is ancestral sampling in the limit of infinitely
    many steps, at the cost of one forward pass per token. A network without a time input never sees
    tau, so `alpha` only sets the times that decisions report (`Decision.time`).

    With a `steps` budget each forward pass commits a group of fixed size (the paper's parallel
    variant). For groups from a grid of times see `ancestral`.

    Args:
        alpha: schedule of the times, "linear", "cosine" or "log_linear".
        order: 2 extrapolates the log-probabilities of a group's later tokens linearly from the
            last two forward passes. This needs a `steps` budget, as a group of one has no later
            token. Experimental: derived here, as the paper's own form is not public. It reads the
            logits twice, and keeps the 64 likeliest tokens of every position.
    """

    alpha: str = "linear"
    order: int = 1
    paper: ClassVar[str] = "arXiv:2409.02908"
    needs: ClassVar[frozenset[str]] = frozenset({"uniform"})
    blind: ClassVar[bool] = True
    adjust_needs: ClassVar[frozenset[str]] = frozenset({"top_tokens"})
    top: ClassVar[int] = 64

    def __post_init__(self) -> None:
        known("alpha", self.alpha, ALPHAS)
        integer("order", self.order, least=1, most=2)

    @property
    def adjust(self) -> Callable[..., Any] | None:
        """Extrapolation, for order 2 only."""
        return self.extrapolate if self.order == 2 else None

    def init_state(self, batch: int, length: int) -> Hitting:
        """Every block begins at time 1."""
        time = torch.ones(batch, dtype=torch.float64)
        if self.order == 1:
            return Hitting(time, None, None)
        before = Summary.empty(batch, length, self.top)
        return Hitting(time, before, torch.zeros(batch, dtype=torch.int64))

    def extrapolate(self, state: Hitting, view: StepView) -> tuple[Hitting, Adjustment]:
        """Token j of the group gets f + j / gap (f - f_before), f log-probabilities."""
        assert state.before is not None
        assert state.gap is not None
        now = Summary.of(view)
        place = rank(-view.want("uniform"), view.masked)
        ahead = place.float() / state.gap.clamp(min=1)[:, None]
        known_before = (view.step > 0)[:, None] & view.masked
        bonus = (ahead * known_before)[..., None] * log_ratio(now, state.before)
        gap = torch.minimum(view.quota, view.masked.sum(-1))
        return Hitting(state.time, now, gap), Adjustment(tokens=now.tokens, bonus=bonus)

    def step(self, state: Hitting, view: StepView) -> tuple[Hitting, Decision]:
        """Commit the positions with the smallest noise; its value gives the hitting time."""
        noise = view.want("uniform")
        count = torch.minimum(view.quota, view.masked.sum(-1)).clamp(min=1)
        order = descending(-noise, view.masked)
        last = noise.gather(-1, order).gather(-1, (count - 1)[:, None])[:, 0]
        time = hitting_time(self.alpha, fresh(view.step, state.time, 1.0), last)
        decision = Decision(top(-noise, view.masked, view.quota), time=time.float())
        return state._replace(time=time), decision
