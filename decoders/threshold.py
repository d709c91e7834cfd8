"""Commit all that is confident enough."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Threshold(Stateless):
    """Commit every position with p(sampled) >= `threshold`, and at least `quota`.

    Confidence-aware parallel decoding of Wu et al. 2025 (Fast-dLLM, arXiv:2505.22618), Alg. 1,
    with at least one position a forward; a `steps` budget raises that minimum.
    """

    threshold: float = 0.9
    paper: ClassVar[str] = "arXiv:2505.22618"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(
                f"threshold must be a probability, or above 1 for one position a forward, "
                f"got {self.threshold}"
            )

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All above the threshold, the best ones at least."""
        confidence = view.want("confidence")
        sure = view.masked & (confidence >= self.threshold)
        return None, Decision(at_least(sure, confidence, view.masked, view.quota))
