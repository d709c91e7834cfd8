"""Fill a block, and keep editing it until it stands still."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least, fresh
from dlm.options import integer, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class BlockRefinement(Policy):
    """Commit c > `threshold` (`quota` at least), and edit tokens the model has changed its mind on.

    Gamma = {i masked: c_i > threshold}, filled up to `quota`; Delta = {i committed: the predicted
    token differs and c_i > editing_threshold} takes the new token. A full block goes on for at
    most `max_post_steps` forwards, until one edits nothing. c is of the tempered and filtered law,
    as in the authors' code. LLaDA2.0 (arXiv:2512.15745) without,
    LLaDA2.1 (arXiv:2602.08676) with editing.

    Args:
        threshold: of masked positions.
        editing_threshold: of committed ones; None never edits.
        max_post_steps: forwards on a full block, with editing.
    """

    threshold: float = 0.95
    editing_threshold: float | None = None
    max_post_steps: int = 16
    paper: ClassVar[str] = "arXiv:2512.15745"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})
    scores: ClassVar[str] = "sampling"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        if self.editing_threshold is not None:
            number("editing_threshold", self.editing_threshold, least=0.0)
        integer("max_post_steps", self.max_post_steps, least=0)

    @property
    def mutates_committed(self) -> bool:
        """Whether it edits."""
        return self.editing_threshold is not None

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """One a blank and those of the full block, within the budget."""
        extra = self.max_post_steps * (blanks > 0) if self.mutates_committed else 0
        return torch.where(limit > 0, limit, blanks + extra)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Forwards made on the full block, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit and edit at once."""
        confidence = view.want("confidence")
        sure = view.masked & (confidence > self.threshold)
        commit = at_least(sure, view.tempered(confidence), view.masked, view.quota)
        if self.editing_threshold is None:
            return state, Decision(commit)
        edit = view.editable & (view.sampled != view.tokens)
        edit &= confidence > self.editing_threshold
        had_masks = view.masked.any(-1)
        post = fresh(view.step, state, 0) + ~had_masks
        full = ~(view.masked & ~commit).any(-1)
        moving = (had_masks | edit.any(-1)) & (post < self.max_post_steps)
        return post, Decision(commit, edit=edit, hold=full & moving & ~view.last)
