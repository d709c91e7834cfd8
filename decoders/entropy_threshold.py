"""Commit every position whose entropy is low enough."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class EntropyThreshold(Stateless):
    """Commit every position of entropy at most `threshold` nats, and at least `quota`.

    {i: H_i <= threshold} and the position of lowest entropy. Decoding of dParallel (Chen et al.
    2025, arXiv:2509.26488), which fine-tunes models to become certain early; the rule works with
    any model.
    """

    threshold: float = 0.5
    paper: ClassVar[str] = "arXiv:2509.26488"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit positions at or below the threshold, at least `quota`, lowest entropy first."""
        entropy = view.want("entropy")
        sure = view.masked & (entropy <= self.threshold)
        return None, Decision(at_least(sure, view.tempered(-entropy), view.masked, view.quota))
