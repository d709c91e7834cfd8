"""Commit the most confident positions."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import top
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class LowConfidence(Stateless):
    """Commit the `quota` most confident positions: top-q of p(sampled).

    "Low-confidence remasking" of Nie et al. 2025 (LLaDA, arXiv:2502.09992), Alg. 5; the name says
    which positions stay masked. Confidence is that of the untempered model.
    """

    paper: ClassVar[str] = "arXiv:2502.09992"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by confidence."""
        scores = view.tempered(view.want("confidence"))
        return None, Decision(top(scores, view.masked, view.quota))
