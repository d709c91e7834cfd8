"""Draft widely, verify with shadow tokens, remask what fails."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least, top
from dlm.options import number
from dlm.types import Decision, StepView

SHARE, LEAST, MOST = 0.7, 5, 20  # most drafts per forward pass: 70% of the masks, from 5 to 20


@dataclass(frozen=True, slots=True)
class Wino(Policy):
    """Commit c > `threshold`; remask committed tokens whose shadow gives them < `threshold_back`.

    Draft: of the masks M, commit the most confident positions above the threshold, at most
    min(max(floor(0.7 |M|), 5), 20) of them, and at least `quota`.

    Verify: every position of the block has a shadow, a mask that attends to all tokens except the
    one in its place. If more than one token was drafted, remask the committed tokens that their
    shadow finds improbable, fewer than the previous forward pass drafted. Hong et al. 2025 (WINO,
    arXiv:2507.18578), Alg. 1. A block verifies in at most as many forward passes as it has blanks,
    so it takes at most twice as many.
    """

    threshold: float = 0.6
    threshold_back: float = 0.9
    paper: ClassVar[str] = "arXiv:2507.18578"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "leave_one_out", "position_noise"})
    mutates_committed: ClassVar[bool] = True
    reads_committed: ClassVar[bool] = False
    caches: ClassVar[tuple[str, ...]] = ("none", "prefix")

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("threshold_back", self.threshold_back, least=0.0)

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """The budget; without one, twice the number of blanks."""
        return torch.where(limit > 0, limit, 2 * blanks)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Drafts of the previous forward pass, int64 [B]; a block's first one verifies nothing."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Draft, then verify what was committed before."""
        confidence = view.want("confidence")
        masks = view.masked.sum(-1)
        most = (SHARE * masks.double()).floor().long().clamp(LEAST, MOST)
        sure = top(confidence, view.masked & (confidence > self.threshold), most)
        draft = at_least(sure, view.tempered(confidence), view.masked, view.quota)
        drafted = draft.sum(-1)
        proof = view.want("leave_one_out")
        doubtful = view.editable & (proof < self.threshold_back)
        verifies = (drafted > 1) & ~view.last & (view.step < masks + view.editable.sum(-1))
        count = torch.minimum(doubtful.sum(-1), state - 1) * verifies
        return drafted, Decision(draft, remask=top(-proof, doubtful, count))
