"""Fill a block, then keep editing it until nothing changes."""

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

    - Commit: {i masked: c_i > threshold}, filled up to `quota`.

    - Edit: {i committed: the predicted token differs and c_i > editing_threshold} takes the
      predicted token.

    A full block continues for at most `max_post_steps` forward passes, or until one edits
    nothing. c is the confidence under the tempered and filtered law, as in the authors' code. This
    is LLaDA2.0 (arXiv:2512.15745) without editing and LLaDA2.1 (arXiv:2602.08676) with editing.

    Args:
        threshold: minimum confidence of masked positions, exclusive.
        editing_threshold: minimum confidence of an edit, exclusive; None never edits.
        max_post_steps: most forward passes on a full block, with editing.
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
        """Whether committed tokens are edited."""
        return self.editing_threshold is not None

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """The budget; without one, one per blank plus those on the full block."""
        extra = self.max_post_steps * (blanks > 0) if self.mutates_committed else 0
        return torch.where(limit > 0, limit, blanks + extra)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Forward passes spent on the full block, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit and edit in the same forward pass."""
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
