"""Commit all that is confident enough."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Threshold(Stateless):
    """Commit every position with p(sampled) >= `threshold`, and at least `quota`.

    Confidence-aware parallel decoding of Wu et al. 2025 (Fast-dLLM, arXiv:2505.22618), Alg. 1,
    with at least one position a forward; a `steps` budget raises that minimum. A threshold above
    1 commits one position a forward.
    """

    threshold: float = 0.9
    paper: ClassVar[str] = "arXiv:2505.22618"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All above the threshold, the best ones at least."""
        confidence = view.want("confidence")
        sure = view.masked & (confidence >= self.threshold)
        return None, Decision(at_least(sure, confidence, view.masked, view.quota))
