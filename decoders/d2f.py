"""Decode several blocks in a pipeline: a block begins before the preceding ones are done."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.decoders.base import MOST_BLOCKS, Policy
from dlm.decoders.select import at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class D2F(Policy):
    """Commit c > `threshold` in all open blocks, one at least where the preceding one is decoded.

    c is confidence by the tempered and filtered law. The active block is open; at each forward the
    block after the last open one opens if that is decoded to a share of `block_add_threshold`. Of
    an open block whose preceding block is decoded to a share of `decoded_token_threshold` at least
    one mask is committed, the most confident one if none is above the threshold; of others it may
    be none. A block without blanks is decoded. A `steps` budget counts for the active block.
    Pipelined decoding of discrete diffusion forcing (Wang et al. 2025, arXiv:2508.09192), for
    block-causal networks; others see all of the row.

    Args:
        threshold: of confidence; `skip_threshold` in the authors' code.
        block_add_threshold: share of a block's blanks, from 0 to 1; 1 is one block at a time.
        decoded_token_threshold: share of the preceding block's blanks.
        blocks: most blocks open at a time, of `block_length` tokens; in the authors' code there is
            no bound. No forward computes more than are open.
    """

    threshold: float = 0.9
    block_add_threshold: float = 0.1
    decoded_token_threshold: float = 0.95
    blocks: int = 8
    paper: ClassVar[str] = "arXiv:2508.09192"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})
    scores: ClassVar[str] = "sampling"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0, most=1.0)
        number("block_add_threshold", self.block_add_threshold, least=0.0, most=1.0)
        number("decoded_token_threshold", self.decoded_token_threshold, least=0.0, most=1.0)
        integer("blocks", self.blocks, least=1, most=MOST_BLOCKS)

    @property
    def ahead(self) -> int:
        """Blocks behind the active one that may change with it."""
        return self.blocks - 1

    def init_state(self, batch: int, length: int) -> Tensor:
        """One past the last open block, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
        """One block more where the last open one is far enough, and one at least."""
        size, share = view.block_length, shares(view)
        most = share.shape[1]
        count = (state - view.block_start) // size
        last = (count - 1).clamp(0, most - 1)[:, None]
        more = share.gather(1, last)[:, 0] >= self.block_add_threshold
        columns = torch.where(count > 0, count + more, 1).clamp(max=most) * size
        return view.block_start + columns, columns

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """The confident ones of the open blocks, one of each that is far enough."""
        # Of the first block one is committed anyway, and what is behind the last is not there.
        relies = pad(shares(view)[:, :-1] >= self.decoded_token_threshold, (1, 0))
        masks = of_blocks(view.masked, view)
        confidence = view.want("confidence")
        scores = view.tempered(confidence)
        sure = masks & (confidence > self.threshold)[:, None]
        flat = [part.flatten(0, 1) for part in (sure, scores[:, None].expand_as(masks), masks)]
        commit = at_least(flat[0], flat[1], flat[2], relies.long().flatten())
        commit = commit.view(masks.shape).any(1)
        front = masks[:, 0]
        return state, Decision(commit | at_least(commit & front, scores, front, view.quota))


def of_blocks(columns: Tensor, view: StepView) -> Tensor:
    """Columns of a window, bool [B, W], apart by the block that they are of, bool [B, N, W]."""
    width = columns.shape[1]
    column = torch.arange(width, device=columns.device)
    each = torch.arange(-(-width // view.block_length), device=columns.device)
    return columns[:, None] & (column // view.block_length == each[:, None])


def shares(view: StepView) -> Tensor:
    """Blanks that are filled among those of each block, float64 [B, N]; 1 where there are none."""
    masks, editable = (of_blocks(part, view).sum(-1) for part in (view.masked, view.editable))
    blanks = masks + editable
    return (editable.double() / blanks.clamp(min=1)).masked_fill(blanks == 0, 1.0)
