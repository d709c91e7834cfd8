"""Parallel commits with a bound on the dependence between the committed tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dlm.decoders.base import Stateless
from dlm.decoders.select import SCORES, certainty, descending, prefix, top
from dlm.options import known, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class EntropyBound(Stateless):
    """Commit the longest prefix U of an order with sum_U H - max_U H <= `gamma`, nats.

    Positions are ordered by increasing error proxy: ascending entropy, or descending confidence or
    margin, as `order` says. At least one position and at least `quota` positions are committed.
    EB-Sampler of Ben-Hamu et al. 2025 (arXiv:2505.24857), eq. 10: the left side bounds the
    dependence among the tokens of U. It grows with U, so the prefix search is exact.
    """

    gamma: float = 0.1
    order: str = "entropy"
    paper: ClassVar[str] = "arXiv:2505.24857"

    def __post_init__(self) -> None:
        number("gamma", self.gamma, least=0.0)
        known("order", self.order, SCORES)

    @property
    def needs(self) -> frozenset[str]:
        """Entropy and the error proxy."""
        return frozenset({"entropy", self.order, "position_noise"})

    @property
    def blind(self) -> bool:
        """Entropy and margin do not depend on the sampled token; confidence does."""
        return self.order != "confidence"

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the longest prefix of ranked positions that satisfies the bound."""
        scores = view.tempered(certainty(view, self.order))
        entropy = view.want("entropy").double().gather(-1, descending(scores, view.masked))
        dependence = entropy.cumsum(-1) - entropy.cummax(-1).values
        count = prefix(dependence <= self.gamma, view.masked)
        return None, Decision(top(scores, view.masked, torch.maximum(count, view.quota)))
