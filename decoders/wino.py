"""Draft widely, verify with shadow tokens, take back what does not hold."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least, top
from dlm.options import number
from dlm.types import Decision, StepView

SHARE, LEAST, MOST = 0.7, 5, 20  # most drafts of a forward: 70% of the masks, from 5 to 20


@dataclass(frozen=True, slots=True)
class Wino(Policy):
    """Commit c > `threshold`; remask committed tokens whose shadow gives them < `threshold_back`.

    Draft: the at most min(max(floor(0.7 |M|), 5), 20) most confident of those above the threshold,
    the best and `quota` at least. Verify: a mask stands in the shadow of every position of the
    block and sees all tokens but the one in its place; where more than one was drafted, committed
    tokens that their shadow finds improbable turn into masks, fewer than the forward before
    drafted. Hong et al. 2025 (WINO, arXiv:2507.18578), Alg. 1. A block verifies for at most as
    many forwards as it has blanks, which bounds it by twice as many.
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
        """Twice the blanks, within the budget."""
        return torch.where(limit > 0, limit, 2 * blanks)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Drafts of the forward before, int64 [B]; a block's first forward verifies nothing."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Draft, then verify what was there before."""
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
