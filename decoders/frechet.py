"""Parallel commits that are safe by Frechet bounds on the joint probability."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least, descending, prefix, top
from dlm.options import number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Frechet(Stateless):
    """Commit the n most confident positions, n the largest with L_n - U_n > `delta`.

    L_n = max(0, sum_{i<=n} c_(i) - (n - 1)) is the Frechet lower bound of the joint probability of
    the n modes; U_n = 1 - c_(n) is an upper bound of that of any other assignment. At least one
    position and at least `quota` positions are committed. Fast-dLLM++ (arXiv:2606.02955). With
    delta = 1 - f this commits at least the positions that `factor` commits with factor f.
    """

    delta: float = 0.25
    paper: ClassVar[str] = "arXiv:2606.02955"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("delta", self.delta, least=0.0, most=1.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the longest prefix of sorted confidences that satisfies the bound."""
        confidence = view.want("confidence")
        best = confidence.gather(-1, descending(confidence, view.masked)).double()
        doubt = 1 - best
        # 1 - (L_n - U_n) where L_n > 0; elsewhere it is at least 1, which is never safe.
        missing = doubt.cumsum(-1) + doubt
        chosen = top(confidence, view.masked, prefix(missing < 1 - self.delta, view.masked))
        return None, Decision(at_least(chosen, view.tempered(confidence), view.masked, view.quota))
