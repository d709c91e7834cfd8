"""Commit positions whose prediction is confident and stable."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.history import Summary, counted, kl_divergence
from dlm.decoders.select import at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


class Streak(NamedTuple):
    """Each position's previous prediction, and for how many forward passes it has been stable."""

    before: Summary
    stable: Tensor  # int64 [B, W]


@dataclass(frozen=True, slots=True)
class Klass(Policy):
    """Commit c > `threshold` whose last `history` divergences are below `kl_threshold`, nats.

    {i: c_i > threshold, KL(p_t || p_{t-1}) < kl_threshold in each of the last `history` forward
    passes of the block}, filled up to `quota` by confidence. Kim et al. 2025 (KLASS,
    arXiv:2511.05664), Alg. 1. Distributions are the model's own at every temperature, and are
    compared by their 64 likeliest tokens. The first forward pass of a block has no predecessor to
    compare with.
    """

    threshold: float = 0.9
    kl_threshold: float = 0.01
    history: int = 2
    paper: ClassVar[str] = "arXiv:2511.05664"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "top_tokens", "position_noise"})
    top: ClassVar[int] = 64

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("kl_threshold", self.kl_threshold, least=0.0)
        integer("history", self.history, least=1)

    def init_state(self, batch: int, length: int) -> Streak:
        """No earlier prediction."""
        stable = torch.zeros(batch, length, dtype=torch.int64)
        return Streak(Summary.empty(batch, length, self.top), stable)

    def step(self, state: Streak, view: StepView) -> tuple[Streak, Decision]:
        """Commit the confident and stable positions, at least `quota`."""
        confidence, now = view.want("confidence"), Summary.of(view)
        still = kl_divergence(now, state.before) < self.kl_threshold
        stable = counted(state.stable, still, view)
        settled = view.masked & (confidence > self.threshold) & (stable >= self.history)
        scores = view.tempered(confidence)
        return Streak(now, stable), Decision(at_least(settled, scores, view.masked, view.quota))
