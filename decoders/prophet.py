"""Commit all remaining masks once the answer is settled."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.select import exact_sum, log_margin, top
from dlm.options import integer, number
from dlm.types import Decision, StepView

EARLY, LATE = 0.33, 0.67  # progress at which the second and third thresholds begin
MOST = 128.0  # nats; no margin is larger


@dataclass(frozen=True, slots=True)
class Prophet(Stateless):
    """Commit the `quota` most confident positions, and all masks once the answer is clear.

    The answer is clear if the mean over the answer region A of ln p_(1) - ln p_(2), nats, is at
    least a threshold set by the progress t / T: `early_threshold` below 0.33, `mid_threshold`
    below 0.67, then `late_threshold`. Li et al. 2025 (Prophet, arXiv:2508.19982), with the numbers
    of the authors' code: the model's own distribution, t counted from 1, committed positions of A
    averaged like masks.

    There t and T are of the generation, and all that is left of it is committed. Here both are of
    the block: t counts its forward passes, and T is how many it may take, or its number of blanks
    without `steps`. With `block_length=None` this is the same. The mean is over the part of A in
    the block; a block without any part of A keeps to its quota.

    Args:
        early_threshold: nats.
        mid_threshold: nats.
        late_threshold: nats.
        answer_start: where A begins, counted from the first blank of the row. With None, A is all
            masks of the block; the authors' code then never commits early.
        answer_length: number of positions of A.
    """

    early_threshold: float = 7.5
    mid_threshold: float = 5.0
    late_threshold: float = 2.5
    answer_start: int | None = None
    answer_length: int = 5
    paper: ClassVar[str] = "arXiv:2508.19982"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "top_tokens", "position_noise"})
    top: ClassVar[int] = 2

    def __post_init__(self) -> None:
        number("early_threshold", self.early_threshold, least=0.0)
        number("mid_threshold", self.mid_threshold, least=0.0)
        number("late_threshold", self.late_threshold, least=0.0)
        if self.answer_start is not None:
            integer("answer_start", self.answer_start, least=0)
        integer("answer_length", self.answer_length, least=1)

    @property
    def reads_committed(self) -> bool:
        """Whether the mean margin includes committed positions."""
        return self.answer_start is not None

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit all masks of rows with a clear answer, and the top `quota` of the others."""
        count = view.quota.where(~self.clear(view), view.masked.shape[-1])
        scores = view.tempered(view.want("confidence"))
        return None, Decision(top(scores, view.masked, count))

    def clear(self, view: StepView) -> Tensor:
        """Whether the mean margin of the answer reaches the threshold, bool [B]."""
        region = self.region(view)
        margin = log_margin(view.want("top_probabilities")).clamp(max=MOST)
        total, count = exact_sum(margin / MOST, region) * MOST, region.sum(-1)
        blanks = (view.masked | view.editable).sum(-1)
        progress = (view.step + 1).double() / torch.where(view.limit > 0, view.limit, blanks)
        bar = torch.full_like(progress, self.late_threshold)
        bar = bar.masked_fill(progress < LATE, self.mid_threshold)
        bar = bar.masked_fill(progress < EARLY, self.early_threshold)
        return (count > 0) & (total / count.clamp(min=1) >= bar)

    def region(self, view: StepView) -> Tensor:
        """The positions of the block whose margins are averaged, bool [B, W]."""
        if self.answer_start is None:
            return view.masked
        index = view.positions - view.row_start[:, None] - self.answer_start
        inside = (index >= 0) & (index < self.answer_length)
        return inside & (view.masked | view.editable)
