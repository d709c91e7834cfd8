"""Relax the threshold around very confident positions."""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import max_pool1d

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class LocalLeap(Stateless):
    """Commit anchors c >= `threshold`, and c >= `relaxed_threshold` near one; at least `quota`.

    With A = {i masked: c_i >= threshold}, commits A and {i masked: c_i >= relaxed_threshold,
    |i - a| <= radius for some a in A}. Kong et al. 2025 (LocalLeap, arXiv:2510.07081), Alg. 1.
    Anchors are masked positions of the block; positions committed by the relaxed threshold are not
    anchors.
    """

    threshold: float = 0.9
    relaxed_threshold: float = 0.75
    radius: int = 4
    paper: ClassVar[str] = "arXiv:2510.07081"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("relaxed_threshold", self.relaxed_threshold, least=0.0)
        integer("radius", self.radius, least=0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit anchors and their sufficiently confident neighbours, at least `quota`."""
        confidence = view.want("confidence")
        anchors = view.masked & (confidence >= self.threshold)
        radius = min(self.radius, anchors.shape[-1] - 1)
        near = max_pool1d(anchors.float()[:, None], 2 * radius + 1, 1, radius)[:, 0] > 0
        leap = near & view.masked & (confidence >= self.relaxed_threshold)
        scores = view.tempered(confidence)
        return None, Decision(at_least(anchors | leap, scores, view.masked, view.quota))
