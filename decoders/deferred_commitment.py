"""Slide a window over the masks, so that nothing is decoded at the edge of what it rests on."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dlm.decoders.base import Stateless
from dlm.decoders.select import NEVER, at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class DeferredCommitment(Stateless):
    """Commit p(sampled) >= `threshold` among the first `window` masks, one of those at least.

    Deferred commitment decoding of Shu et al. 2026 (DCD, arXiv:2601.02076), for networks that see
    both ways: in place of blocks, whose last positions must be decoded before anything behind them
    is, a window moves with the first mask L,
        {i: i is mask, i < L + max_window, at most `window` masks are in [L, i]}.
    It holds at least what a `steps` budget needs. Give `block_length=None`, or one that holds
    several windows: the window stays in the block. The authors make caches anew after so many
    tokens, `refresh_every` after so many forwards; their blocks that grow, for networks that see
    block by block, are left out.

    Args:
        threshold: of confidence.
        window: masks.
        max_window: positions from the first mask on; None for any number.
    """

    threshold: float = 0.9
    window: int = 32
    max_window: int | None = None
    paper: ClassVar[str] = "arXiv:2601.02076"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("window", self.window, least=1)
        if self.max_window is not None:
            integer("max_window", self.max_window, least=1)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All of the window at or above the threshold, and no fewer of the best than the quota."""
        confidence, masked = view.want("confidence"), view.masked
        count = masked.cumsum(-1)
        inside = count <= self.window
        if self.max_window is not None:
            first = torch.where(masked, view.positions, NEVER).amin(-1, keepdim=True)
            inside &= view.positions < first + self.max_window
        inside = masked & (inside | (count <= view.quota[:, None]))
        sure = inside & (confidence >= self.threshold)
        return None, Decision(at_least(sure, view.tempered(confidence), inside, view.quota))
