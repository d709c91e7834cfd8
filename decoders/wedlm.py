"""Prefer what is certain and close to the first mask, so that the known prefix grows steadily."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dlm.decoders.base import Stateless
from dlm.decoders.select import NEVER, at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class WeDLM(Stateless):
    """Commit H_i + `penalty` (i - L) < `threshold` from the first mask L on, one at least.

    Streaming parallel decoding of Liu et al. 2025 (WeDLM, arXiv:2512.22737, and the authors'
    engine). The entropy H_i of a masked position i is raised by its distance from the first mask,
    and only the `window` positions from there on are decoded: all below the threshold, else the
    lowest one. The rule works with every network. The authors' engine caches everything in front
    of L; here a cache holds what is in front of the active block. Give `block_length=None` for a
    window that crosses no border, as there; otherwise it ends with its block.

    Args:
        threshold: of entropy and penalty together, nats.
        penalty: for each position between the first mask and another, nats.
        window: positions from the first mask on.
    """

    threshold: float = 0.4
    penalty: float = 0.02
    window: int = 16
    paper: ClassVar[str] = "arXiv:2512.22737"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("penalty", self.penalty, least=0.0)
        integer("window", self.window, least=1)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All of the window that is below the threshold, and no fewer than the quota."""
        masked = view.masked
        first = torch.where(masked, view.positions, NEVER).amin(-1, keepdim=True)
        distance = view.positions - first
        cost = view.want("entropy") + self.penalty * distance
        inside = masked & ((distance < self.window) | (masked.cumsum(-1) <= view.quota[:, None]))
        sure = inside & (cost < self.threshold)
        return None, Decision(at_least(sure, view.tempered(-cost), inside, view.quota))
