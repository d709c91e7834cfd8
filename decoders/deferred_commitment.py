"""Slide a window over the masks, so that positions are committed with context on both sides."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.select import NEVER
from dlm.decoders.sliding import Sliding
from dlm.options import boolean, integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class DeferredCommitment(Sliding):
    """Commit p(sampled) >= `threshold` among the first `window` masks, one of those at least.

    Deferred commitment decoding of Shu et al. 2026 (DCD, arXiv:2601.02076), for bidirectional
    networks. With blocks, the last positions of a block are decoded before anything after them.
    This decoder instead uses a window that moves with the first mask L:
        {i: i is mask, i < L + max_window, at most `window` masks are in [L, i]}.
    The window holds at least as many masks as a `steps` budget requires. Unless it is `sliding`, it
    ends with its block: then set `block_length=None`, or to several windows. The authors refresh
    caches after a number of tokens; here a new active block and `refresh_every` do. Their growing
    blocks, for block-causal networks, are not implemented.

    Args:
        threshold: minimum confidence to commit.
        window: most masks in the window.
        max_window: most positions from the first mask on; None for no limit.
        sliding: whether the window crosses the ends of blocks, into at most 63 more. With a cache
            of short blocks, a forward pass computes the window instead of the whole answer. A
            `steps` budget applies to the active block.
    """

    threshold: float = 0.9
    window: int = 32
    max_window: int | None = None
    sliding: bool = False
    paper: ClassVar[str] = "arXiv:2601.02076"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("window", self.window, least=1)
        if self.max_window is not None:
            integer("max_window", self.max_window, least=1)
        boolean("sliding", self.sliding)

    def near(self, view: StepView) -> Tensor:
        """The first `window` masks, within `max_window` positions."""
        masked = view.masked
        near = masked & (masked.cumsum(-1) <= self.window)
        if self.max_window is None:
            return near
        first = torch.where(masked, view.positions, NEVER).amin(-1, keepdim=True)
        return near & (view.positions < first + self.max_window)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit positions of the window at or above the threshold, at least `quota`."""
        confidence, near = view.want("confidence"), self.near(view)
        sure = near & (confidence >= self.threshold)
        return None, Decision(self.commits(view, near, sure, view.tempered(confidence)))
