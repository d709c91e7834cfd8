"""Orders that ignore or replace confidence: baselines for every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoders.base import Stateless
from dlm.decoders.select import top
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Random(Stateless):
    """Commit `quota` uniformly chosen positions: the q smallest of U(0, 1).

    "Random remasking" of Nie et al. 2025 (LLaDA, arXiv:2502.09992), Alg. 4.
    """

    paper: ClassVar[str] = "arXiv:2502.09992"
    needs: ClassVar[frozenset[str]] = frozenset({"uniform"})
    blind: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by fresh noise."""
        return None, Decision(top(-view.want("uniform"), view.masked, view.quota))


@dataclass(frozen=True, slots=True)
class LeftToRight(Stateless):
    """Commit the `quota` leftmost positions: top-q of minus the position.

    The order of an autoregressive model. With one token per forward pass and greedy sampling it is
    left-to-right greedy decoding.
    """

    paper: ClassVar[str] = "the autoregressive order"
    needs: ClassVar[frozenset[str]] = frozenset()
    blind: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by position."""
        return None, Decision(top(-view.positions, view.masked, view.quota))


@dataclass(frozen=True, slots=True)
class Entropy(Stateless):
    """Commit the `quota` positions of lowest entropy: top-q of sum_v p_v ln p_v.

    The entropy order of Ye et al. 2025 (Dream, arXiv:2508.15487), in nats.
    """

    paper: ClassVar[str] = "arXiv:2508.15487"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by negative entropy."""
        return None, Decision(top(view.tempered(-view.want("entropy")), view.masked, view.quota))


@dataclass(frozen=True, slots=True)
class Margin(Stateless):
    """Commit the `quota` positions of largest margin: top-q of p_(1) - p_(2).

    Top probability margin of Kim et al. 2025 (arXiv:2502.06768), section 4.
    """

    paper: ClassVar[str] = "arXiv:2502.06768"
    needs: ClassVar[frozenset[str]] = frozenset({"margin", "position_noise"})
    blind: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by margin."""
        return None, Decision(top(view.tempered(view.want("margin")), view.masked, view.quota))
