"""Commit all positions that are confident enough, individually or jointly."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least, descending, prefix, top
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Threshold(Stateless):
    """Commit every position with p(sampled) >= `threshold`, and at least `quota`.

    Confidence-aware parallel decoding of Wu et al. 2025 (Fast-dLLM, arXiv:2505.22618), Alg. 1, with
    at least one position per forward pass; a `steps` budget raises that minimum. A threshold above
    1 commits one position per forward pass.
    """

    threshold: float = 0.9
    paper: ClassVar[str] = "arXiv:2505.22618"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit positions at or above the threshold, at least `quota`."""
        confidence = view.want("confidence")
        sure = view.masked & (confidence >= self.threshold)
        return None, Decision(at_least(sure, view.tempered(confidence), view.masked, view.quota))


@dataclass(frozen=True, slots=True)
class Factor(Stateless):
    """Commit the n most confident positions, n the largest with (n + 1)(1 - c_(n)) < `factor`.

    c_(1) >= c_(2) >= ... are the confidences of the masked positions. At least one position and at
    least `quota` positions are committed. Factor-based parallel decoding of Wu et al. 2025
    (Fast-dLLM, arXiv:2505.22618), section 3.3: where the left side is below 1, the product of the
    marginal modes is the joint mode. The authors' code commits one position too many where the
    scan ends; this follows the paper.
    """

    factor: float = 1.0
    paper: ClassVar[str] = "arXiv:2505.22618"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("factor", self.factor, least=0.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the longest prefix of sorted confidences that satisfies the bound."""
        confidence = view.want("confidence")
        best = confidence.gather(-1, descending(confidence, view.masked)).double()
        count = torch.arange(1, best.shape[-1] + 1, device=best.device)
        safe = prefix((count + 1) * (1 - best) < self.factor, view.masked)
        chosen = top(confidence, view.masked, safe)
        return None, Decision(at_least(chosen, view.tempered(confidence), view.masked, view.quota))
