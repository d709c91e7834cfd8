"""Parallel commits whose joint mode is safe by a bound on their joint probability."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least, descending, prefix, top
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Frechet(Stateless):
    """Commit the n most confident positions, n the largest with L_n - U_n > `delta`.

    L_n = max(0, sum_{i<=n} c_(i) - (n - 1)) bounds the joint probability of the n modes from
    below (Frechet), U_n = 1 - c_(n) that of any other assignment from above; one position at
    least, and at least `quota`. Fast-dLLM++ (arXiv:2606.02955). With delta = 1 - f it commits
    all that `factor` f does.
    """

    delta: float = 0.25
    paper: ClassVar[str] = "arXiv:2606.02955"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("delta", self.delta, least=0.0, most=1.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """The longest prefix of sorted confidences that satisfies the bound."""
        confidence = view.want("confidence")
        best = confidence.gather(-1, descending(confidence, view.masked)).double()
        doubt = 1 - best
        # 1 - (L_n - U_n) where L_n is above 0; it is at least 1 elsewhere, and so never safe.
        missing = doubt.cumsum(-1) + doubt
        chosen = top(confidence, view.masked, prefix(missing < 1 - self.delta, view.masked))
        return None, Decision(at_least(chosen, view.tempered(confidence), view.masked, view.quota))
