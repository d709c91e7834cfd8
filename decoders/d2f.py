"""Decode several blocks in a pipeline: the next one begins before those in front of it are done."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class D2F(Policy):
    """Commit c > `threshold` in all open blocks, and the best of each that may rely on its context.

    c is the confidence. The active block is open; at each forward the one behind the last open one
    opens if that is decoded to a share of `block_add_threshold`. Of a block whose neighbour in
    front is decoded to a share of `decoded_token_threshold` at least one mask is committed, the
    most confident one if none is above the threshold; of others it may be none. A `steps` budget
    counts for the active block. Pipelined decoding of discrete diffusion forcing (Wang et al. 2025,
    arXiv:2508.09192), for networks whose blocks see none of those behind them; others see all of
    the row.

    Args:
        threshold: of confidence; `skip_threshold` in the authors' code.
        block_add_threshold: share of a block's blanks, from 0 to 1; 1 is one block at a time.
        decoded_token_threshold: likewise.
        blocks: most blocks open at a time, of `block_length` tokens. Every forward computes so
            many; in the authors' code there is no bound.
    """

    threshold: float = 0.9
    block_add_threshold: float = 0.1
    decoded_token_threshold: float = 0.95
    blocks: int = 4
    paper: ClassVar[str] = "arXiv:2508.09192"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})
    scores: ClassVar[str] = "sampling"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0, most=1.0)
        number("block_add_threshold", self.block_add_threshold, least=0.0, most=1.0)
        number("decoded_token_threshold", self.decoded_token_threshold, least=0.0, most=1.0)
        integer("blocks", self.blocks, least=1, most=64)

    @property
    def ahead(self) -> int:
        """Blocks behind the active one that may change with it."""
        return self.blocks - 1

    def init_state(self, batch: int, length: int) -> Tensor:
        """One past the last open block, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """The confident ones of the open blocks, one of each that is far enough."""
        size, width = view.block_length, view.masked.shape[1]
        each = torch.arange(-(-width // size), device=view.masked.device)
        column = torch.arange(width, device=view.masked.device)
        inside = column // size == each[:, None]  # [N, W]
        masks, editable = (part[:, None] & inside for part in (view.masked, view.editable))
        decoded, blanks = editable.sum(-1), (masks | editable).sum(-1)  # [B, N]
        count = self.opened((state - view.block_start) // size, decoded, blanks)
        relies = decoded >= self.decoded_token_threshold * blanks.double()
        relies = torch.cat((torch.ones_like(relies[:, :1]), relies[:, :-1]), 1)

        confidence = view.want("confidence")
        scores, allowed = view.tempered(confidence), masks & (each < count[:, None])[..., None]
        sure = allowed & (confidence > self.threshold)[:, None]
        flat = [part.flatten(0, 1) for part in (sure, scores[:, None].expand_as(masks), allowed)]
        least = at_least(flat[0], flat[1], flat[2], relies.long().flatten())
        commit = least.view(masks.shape).any(1)
        front = masks[:, 0]
        commit |= at_least(commit & front, scores, front, view.quota)
        return view.block_start + count * size, Decision(commit)

    def opened(self, count: Tensor, decoded: Tensor, blanks: Tensor) -> Tensor:
        """Blocks of the window that are open after one more may have been added, int64 [B].

        Args:
            count: of those open so far, int64 [B]; 0 or less where none is left of them.
            decoded: blanks of each block that are filled, int64 [B, N].
            blanks: of each block, int64 [B, N].
        """
        most = decoded.shape[1]
        last = (count - 1).clamp(0, most - 1)[:, None]
        done, whole = decoded.gather(1, last)[:, 0], blanks.gather(1, last)[:, 0]
        more = done >= self.block_add_threshold * whole.double()
        return torch.where(count > 0, count + more, 1).clamp(max=most)
