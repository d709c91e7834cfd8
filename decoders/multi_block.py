"""Decode several sub-blocks at once: each begins before the preceding one is complete."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import NEVER, at_least, fresh
from dlm.options import integer, known, number
from dlm.types import Decision, StepView

VARIANTS = ("llada", "dream")


@dataclass(frozen=True, slots=True)
class MultiBlock(Policy):
    """Commit H <= `threshold` nats in sub-blocks that open while those in front are decoded.

    A block is cut into sub-blocks, of which the first is open. In each forward pass, the sub-block
    after the last open one opens if that one is decoded to the fraction `block_add_threshold`. Of
    the masks in open sub-blocks, {i: H_i <= threshold} are committed, the one of lowest entropy
    overall, and the one of lowest entropy in the first sub-block with masks if it has no other.
    The variant "dream" follows the authors' code for Dream: it commits {i: H_i < threshold}, and
    only the first sub-block with masks must commit one. A `steps` budget may commit beyond the open
    sub-blocks if they have too few masks. Multi-block decoding of d3LLM (Qian et al. 2026,
    arXiv:2601.07568). Its option `decoded_token_threshold` is left out: it says which sub-blocks
    must commit one. The authors' code requires it of the first sub-block with masks only, whose
    predecessors are always fully decoded.

    Args:
        threshold: maximum entropy to commit, nats.
        block_add_threshold: fraction of blanks decoded, 0 to 1; 1 is one sub-block at a time.
        sub_block_length: tokens. Set `block_length=None`, or to several sub-blocks.
        variant: "llada" or "dream", the network for which the authors' code is followed.
    """

    threshold: float = 0.5
    block_add_threshold: float = 0.1
    sub_block_length: int = 32
    variant: str = "llada"
    paper: ClassVar[str] = "arXiv:2601.07568"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "position_noise"})
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("block_add_threshold", self.block_add_threshold, least=0.0, most=1.0)
        integer("sub_block_length", self.sub_block_length, least=1)
        known("variant", self.variant, VARIANTS)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Number of open sub-blocks, int64 [B]."""
        return torch.ones(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit certain positions of the open sub-blocks, at least one of the first."""
        entropy = view.want("entropy")
        place = (view.positions - view.block_start[:, None]) // self.sub_block_length
        first = place.masked_fill(~view.masked, NEVER).amin(-1)
        count = self.opened(fresh(view.step, state, 1), place, view)
        # Given tokens between blanks can fill whole sub-blocks, which have no blank.
        count = torch.where(first < NEVER, count.maximum(first + 1), count)
        open_ = view.masked & (place < count[:, None])
        scores = view.tempered(-entropy)
        if self.variant == "dream":
            sure = open_ & (entropy < self.threshold)
        else:
            sure = at_least(open_ & (entropy <= self.threshold), scores, open_, view.quota)
        foremost = view.masked & (place == first[:, None])
        sure |= at_least(sure & foremost, scores, foremost, torch.ones_like(count))
        sure = at_least(sure, scores, open_, view.quota)
        return count, Decision(at_least(sure, scores, view.masked, view.quota))

    def opened(self, count: Tensor, place: Tensor, view: StepView) -> Tensor:
        """Number of open sub-blocks, after one more may have opened, int64 [B].

        Args:
            count: number open so far, int64 [B].
            place: sub-block of each column, int64 [B, W].
            view: view of the step.
        """
        last = place == count[:, None] - 1
        blanks = (last & (view.masked | view.editable)).sum(-1)
        done = (last & view.editable).sum(-1)
        share = (done.double() / blanks.clamp(min=1)).masked_fill(blanks == 0, 1.0)
        return count + (share >= self.block_add_threshold)
