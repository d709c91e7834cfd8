"""Spread commits over the gaps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.select import at_least, rank, top
from dlm.options import boolean, number
from dlm.types import Decision, StepView


@dataclass(frozen=True, slots=True)
class Hierarchical(Stateless):
    """Commit c > `threshold`, and the best of every run of masks if c > `low_threshold`.

    A run is a maximal stretch of masked positions: its best one splits it, so that tokens
    committed together stand apart. The best position of all and `quota` at least. Qi et al. 2025
    (hierarchical decoding, arXiv:2510.08666), Alg. 1.

    Args:
        threshold: of confidence, anywhere.
        low_threshold: of confidence, for the best of a run.
        remask: also remask committed tokens whose probability is now below `low_threshold`,
            and commit one more than that.
    """

    threshold: float = 0.9
    low_threshold: float = 0.4
    remask: bool = False
    paper: ClassVar[str] = "arXiv:2510.08666"

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        number("low_threshold", self.low_threshold, least=0.0)
        boolean("remask", self.remask)

    @property
    def needs(self) -> frozenset[str]:
        """Confidence, and that of committed tokens where they may be remasked."""
        more = {"token_probability"} if self.remask else set()
        return frozenset({"confidence", "position_noise"} | more)

    @property
    def mutates_committed(self) -> bool:
        """Whether it remasks."""
        return self.remask

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Sure ones, one of each run, the best one; then doubtful ones back."""
        confidence = view.want("confidence")
        sure = confidence > self.threshold
        first = best_of_run(confidence, view.masked) & (confidence > self.low_threshold)
        scores = view.tempered(confidence)
        commit = at_least(view.masked & (sure | first), scores, view.masked, view.quota)
        if not self.remask:
            return None, Decision(commit)
        probability = view.want("token_probability")
        doubtful = view.editable & (probability < self.low_threshold) & ~view.last[:, None]
        # One more commit than remasks: more commits where there are masks, else fewer remasks.
        commit = at_least(commit, scores, view.masked, doubtful.sum(-1) + 1)
        return None, Decision(commit, remask=top(-probability, doubtful, commit.sum(-1) - 1))


def best_of_run(scores: Tensor, masked: Tensor) -> Tensor:
    """The highest score of each maximal run of masked columns, the first among equals. bool."""
    begins = masked & ~masked.roll(1, -1).index_fill(-1, torch.zeros_like(masked[0, :1]).long(), 0)
    run = begins.cumsum(-1)
    place = rank(scores, masked)
    best = torch.full_like(place, masked.shape[-1] + 1)
    best = torch.cat((best, best[:, :1]), -1).scatter_reduce(
        -1, run, place.masked_fill(~masked, masked.shape[-1] + 1), "amin"
    )
    return masked & (place == best.gather(-1, run))
