"""Decode in sub-blocks that end at a delimiter, such as a line feed."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import NEVER, at_least, fresh
from dlm.options import integer, integers, number
from dlm.types import Decision, Facts, StepView


@dataclass(frozen=True, slots=True)
class AdaptiveBlock(Policy):
    """Commit p(sampled) >= `threshold` in sub-blocks that end with a delimiter.

    AdaBlock-dLLM of Lu et al. 2025 (arXiv:2509.26432). When a sub-block is decoded, the next one
    begins at the first mask L. The delimiter candidates are the masks of [L, L + floor(`look` N))
    whose sampled token is a delimiter; N is the number of positions from the row's first blank to
    its last. The sub-block ends at the most confident candidate if its confidence is at least
    `delimiter_threshold`; otherwise it has `sub_block_length` positions. Each forward pass commits
    at least one position. A `steps` budget may commit beyond a sub-block that is too short.

    Args:
        threshold: minimum confidence to commit.
        sub_block_length: positions. Set `block_length=None`, or to several sub-blocks.
        delimiter_threshold: minimum confidence of a delimiter.
        delimiter_ids: tokens that end a sub-block; 198 is the line feed of LLaDA and Dream. Ids
            outside the vocabulary have no effect.
        look: fraction of the row that is searched for a delimiter.
    """

    threshold: float = 0.9
    sub_block_length: int = 32
    delimiter_threshold: float = 0.3
    delimiter_ids: tuple[int, ...] = (198,)
    look: float = 0.25
    paper: ClassVar[str] = "arXiv:2509.26432"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("sub_block_length", self.sub_block_length, least=1)
        number("delimiter_threshold", self.delimiter_threshold, least=0.0)
        number("look", self.look, least=0.0, most=1.0)
        ids = integers("delimiter_ids", self.delimiter_ids, least=0)
        object.__setattr__(self, "delimiter_ids", tuple(ids))  # decoders compare and hash

    def bind(self, facts: Facts) -> "Delimited":
        """Move the delimiters to the device of the model."""
        options = {option.name: getattr(self, option.name) for option in fields(AdaptiveBlock)}
        ids = torch.tensor(self.delimiter_ids, dtype=torch.int64, device=facts.device)
        return Delimited(**options, ids=ids)

    def init_state(self, batch: int, length: int) -> Tensor:
        """One past the end of the sub-block, int64 [B]; 0 before the first sub-block."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Always raise: only the decoder that `bind` returns can decode."""
        raise ValueError("adaptive_block must be bound to a model before it decodes: call bind")


@dataclass(frozen=True, slots=True)
class Delimited(AdaptiveBlock):
    """AdaBlock with its delimiters on the device of the model."""

    ids: Tensor | None = field(default=None, compare=False, repr=False)  # int64 [D]

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit positions of the sub-block at or above the threshold, at least `quota`."""
        confidence, masked = view.want("confidence"), view.masked
        first = view.positions.masked_fill(~masked, NEVER).amin(-1)
        end = fresh(view.step, state, 0)
        end = torch.where(first >= end, self.end(first, view), end)
        open_ = masked & (view.positions < end[:, None])
        scores = view.tempered(confidence)
        sure = at_least(open_ & (confidence >= self.threshold), scores, open_, view.quota)
        return end, Decision(at_least(sure, scores, masked, view.quota))

    def end(self, first: Tensor, view: StepView) -> Tensor:
        """One past the end of a sub-block that begins at `first`; both int64 [B]."""
        assert self.ids is not None
        reach = first + (self.look * (view.row_stop - view.row_start).double()).long()
        near = view.masked & (view.positions < reach[:, None])
        near &= (view.sampled[..., None] == self.ids).any(-1)
        sure = view.want("confidence").masked_fill(~near, -1.0)
        most = sure.amax(-1, keepdim=True)
        place = view.positions.masked_fill(~near | (sure < most), NEVER).amin(-1)
        found = near.any(-1) & (most[:, 0] >= self.delimiter_threshold)
        return torch.where(found, place + 1, first + self.sub_block_length)
