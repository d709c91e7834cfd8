"""Commit confident positions whose predictions agree over forward passes."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.history import Summary, counted, js_divergence
from dlm.decoders.select import at_least
from dlm.options import integer, number
from dlm.types import Decision, StepView


class Agreement(NamedTuple):
    """Each position's previous prediction, and how long its best token has been the same."""

    before: Summary
    same: Tensor  # int64 [B, W], forward passes


@dataclass(frozen=True, slots=True)
class MutualStability(Policy):
    """Commit c >= `threshold` with an unchanged best token and little drift.

    {i: c_i >= threshold, arg max unchanged over the last `patience` forward passes of the block,
    and JS(p_t, p_{t-1}) <= drift nats}, filled up to `quota` by confidence. JS compares the 8
    likeliest tokens of either distribution and the remaining mass. With `patience` 0 nothing is
    compared. LESS (arXiv:2606.16908), as its code decodes LLaDA; for Dream it has another rule
    (docs/migrating.md). Distributions are the model's own at every temperature. A block continues
    until it has no mask; the authors' code can leave some.
    """

    threshold: float = 0.75
    patience: int = 2
    drift: float = 0.04
    paper: ClassVar[str] = "arXiv:2606.16908"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "top_tokens", "position_noise"})
    top: ClassVar[int] = 8

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("patience", self.patience, least=0)
        number("drift", self.drift, least=0.0)

    def init_state(self, batch: int, length: int) -> Agreement:
        """No earlier prediction."""
        same = torch.zeros(batch, length, dtype=torch.int64)
        return Agreement(Summary.empty(batch, length, self.top), same)

    def step(self, state: Agreement, view: StepView) -> tuple[Agreement, Decision]:
        """Commit the confident and unchanged positions, at least `quota`."""
        confidence, now = view.want("confidence"), Summary.of(view)
        agrees = (now.tokens[..., :1] == state.before.tokens[..., :1]).all(-1)
        same = counted(state.same, agrees, view)
        quiet = js_divergence(now, state.before) <= self.drift
        settled = (confidence >= self.threshold) & (same >= self.patience)
        if self.patience:  # patience 0 needs no earlier forward pass
            settled &= quiet & (view.step > 0)[:, None]
        scores = view.tempered(confidence)
        chosen = at_least(view.masked & settled, scores, view.masked, view.quota)
        return Agreement(now, same), Decision(chosen)
