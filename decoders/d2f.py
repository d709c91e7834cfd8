"""Decode blocks in a pipeline: a block begins before the preceding ones are complete."""

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

    c is the confidence under the tempered and filtered law. The active block is open. Before a
    forward pass, the next block opens if the last open one is decoded to the fraction
    `block_add_threshold`. An open block commits at least its most confident mask if its preceding
    block is decoded to the fraction `decoded_token_threshold`; other open blocks may commit
    nothing. A block without blanks counts as decoded. A `steps` budget applies to the active block.
    Pipelined decoding of discrete diffusion forcing (Wang et al. 2025, arXiv:2508.09192), for
    block-causal networks; other networks attend to the whole row.

    Args:
        threshold: minimum confidence, exclusive; `skip_threshold` in the authors' code.
        block_add_threshold: fraction of a block's blanks, 0 to 1; 1 decodes one block at a time.
        decoded_token_threshold: fraction of the preceding block's blanks.
        blocks: most blocks open at a time, of `block_length` tokens each; unbounded in the authors'
            code. A forward pass computes only the open blocks.
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
        """Number of blocks after the active one that may change with it."""
        return self.blocks - 1

    def init_state(self, batch: int, length: int) -> Tensor:
        """One past the last open block, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
        """Open one more block if the last open one is decoded enough; at least one is open."""
        size, share = view.block_length, shares(view)
        most = share.shape[1]
        count = (state - view.block_start) // size
        last = (count - 1).clamp(0, most - 1)[:, None]
        more = share.gather(1, last)[:, 0] >= self.block_add_threshold
        columns = torch.where(count > 0, count + more, 1).clamp(max=most) * size
        return view.block_start + columns, columns

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit confident positions of the open blocks, at least one where a block requires it."""
        # Block n looks at block n - 1; the first has none, and gets its quota below.
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
    """Split window columns, bool [B, W], by the block they belong to, bool [B, N, W]."""
    width = columns.shape[1]
    column = torch.arange(width, device=columns.device)
    each = torch.arange(-(-width // view.block_length), device=columns.device)
    return columns[:, None] & (column // view.block_length == each[:, None])


def shares(view: StepView) -> Tensor:
    """Fraction of each block's blanks that is decoded, float64 [B, N]; 1 without blanks."""
    masks, editable = (of_blocks(part, view).sum(-1) for part in (view.masked, view.editable))
    blanks = masks + editable
    return (editable.double() / blanks.clamp(min=1)).masked_fill(blanks == 0, 1.0)
