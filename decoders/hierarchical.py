"""Spread commits over the gaps between decoded tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least, rank
from dlm.options import boolean, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Hierarchical(Stateless):
    """Commit c > `threshold`, and the best of every run of masks if c > `low_threshold`.

    A run is a maximal sequence of consecutive masked positions. Its best position splits it, so
    tokens committed together lie apart. The best position overall is always committed, and at least
    `quota` positions. Qi et al. 2025 (hierarchical decoding, arXiv:2510.08666), Alg. 1.

    Args:
        threshold: minimum confidence of any position, exclusive.
        low_threshold: minimum confidence of the best position of a run, exclusive.
        remask: also reconsider committed positions whose confidence is now below `low_threshold`.
            They count as masks, so runs extend over them, and those not chosen again are remasked.
            The number of chosen positions exceeds the number reconsidered by at least one.
    """

    threshold: float = 0.9
    low_threshold: float = 0.4
    remask: bool = False
    paper: ClassVar[str] = "arXiv:2510.08666"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("low_threshold", self.low_threshold, least=0.0)
        boolean("remask", self.remask)

    @property
    def mutates_committed(self) -> bool:
        """Whether committed tokens are remasked."""
        return self.remask

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit confident positions, the best of each run and the best overall."""
        confidence = view.want("confidence")
        open_, count = view.masked, view.quota
        if self.remask:
            doubted = view.editable & (confidence < self.low_threshold)
            open_, count = open_ | doubted, count + doubted.sum(-1)
        first = best_of_run(confidence, open_) & (confidence > self.low_threshold)
        sure = open_ & (first | (confidence > self.threshold))
        chosen = at_least(sure, view.tempered(confidence), open_, count)
        if not self.remask:
            return None, Decision(chosen)
        commit = chosen & view.masked
        again = chosen & ~view.masked & (view.sampled != view.tokens)
        return None, Decision(commit, remask=doubted & ~chosen, edit=again)


def best_of_run(scores: Tensor, masked: Tensor) -> Tensor:
    """Mark the best column of each maximal run of masked columns, the first among equals. bool."""
    begins = masked & ~pad(masked[:, :-1], (1, 0))
    run = begins.cumsum(-1)  # numbered from 1; a gap has the number of the run before it
    place = rank(scores, masked)
    behind = masked.shape[-1]
    best = torch.full((*place.shape[:-1], behind + 1), behind, device=place.device)
    best = best.scatter_reduce(-1, run, place.masked_fill(~masked, behind), "amin")
    return masked & (place == best.gather(-1, run))
