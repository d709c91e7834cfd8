"""Commit all that is certain enough."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Published, Stateless
from dlm.decoders.select import at_least
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class EntropyThreshold(Stateless):
    """Commit every position of entropy at most `threshold` nats, and at least `quota`.

    {i: H_i <= threshold} and the position of lowest entropy. Decoding of dParallel (Chen et al.
    2025, arXiv:2509.26488), which fine-tunes models to be certain early; it works with any.
    """

    threshold: float = 0.5
    paper: ClassVar[str] = "arXiv:2509.26488"
    published: ClassVar[tuple[Published, ...]] = (
        Published("GSM8K, dParallel-LLaDA", "threshold=0.5 block_length=32", 8.5),
        Published("MATH, dParallel-LLaDA", "threshold=0.5 block_length=32", 5.6),
        Published("HumanEval, dParallel-LLaDA", "threshold=0.5 block_length=32", 7.8),
        Published("MBPP, dParallel-LLaDA", "threshold=0.45 block_length=32", 10.7),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All below the threshold, the least uncertain ones at least."""
        entropy = view.want("entropy")
        sure = view.masked & (entropy <= self.threshold)
        return None, Decision(at_least(sure, view.tempered(-entropy), view.masked, view.quota))
