"""Prefer what is certain and close to the first mask, so that the known prefix grows steadily."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import MOST_BLOCKS
from dlm.decoders.select import NEVER
from dlm.decoders.sliding import Sliding
from dlm.options import boolean, integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class WeDLM(Sliding):
    """Commit H_i + `penalty` (i - L) < `threshold` from the first mask L on, one at least.

    Streaming parallel decoding of Liu et al. 2025 (WeDLM, arXiv:2512.22737, and the authors'
    engine). The entropy H_i of a masked position i is raised by its distance from the first mask,
    and only the `window` positions from there on are decoded: all below the threshold, else the
    lowest one. The rule works with every network. The window ends with its block, unless it is
    `sliding`. The authors' window slides, and their engine caches what is in front of L: so does
    `sliding=True` with `block_length=1` and a cache, for networks that see masks last.

    Args:
        threshold: of entropy and penalty together, nats.
        penalty: for each position between the first mask and another, nats.
        window: positions from the first mask on; at most 64 if sliding.
        sliding: whether the window crosses the ends of blocks. With a cache, what follows it is not
            computed, and networks that see masks last see nothing after its last blank. A `steps`
            budget applies to the active block.
    """

    threshold: float = 0.4
    penalty: float = 0.02
    window: int = 16
    sliding: bool = False
    paper: ClassVar[str] = "arXiv:2512.22737"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("penalty", self.penalty, least=0.0)
        boolean("sliding", self.sliding)
        integer("window", self.window, least=1)
        if self.sliding:
            integer("window, if sliding,", self.window, least=1, most=MOST_BLOCKS)

    @property
    def ahead(self) -> int:
        """Blocks after the active one that a window may reach, as many as blocks of 1 take."""
        return self.window - 1 if self.sliding else 0

    def near(self, view: StepView) -> Tensor:
        """Masks less than `window` positions from the first one."""
        return view.masked & (distance(view) < self.window)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All of the window that is below the threshold, and no fewer than the quota."""
        cost, near = view.want("entropy") + self.penalty * distance(view), self.near(view)
        sure = near & (cost < self.threshold)
        return None, Decision(self.commits(view, near, sure, view.tempered(-cost)))


def distance(view: StepView) -> Tensor:
    """How far each position is from the row's first mask, int64 [B, W]."""
    first = torch.where(view.masked, view.positions, NEVER).amin(-1, keepdim=True)
    return view.positions - first
