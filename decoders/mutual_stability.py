"""Commit what is sure and on whose token the model agrees with itself."""

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
    """What each position predicted last, and for how many forwards its best token is the same."""

    before: Summary
    same: Tensor  # int64 [B, W]


@dataclass(frozen=True, slots=True)
class MutualStability(Policy):
    """Commit c >= `threshold` with an unchanged best token and little drift.

    {i: c_i >= threshold, arg max unchanged over the last `patience` forwards of the block, and
    JS(p_t, p_{t-1}) <= drift nats on the 8 likeliest tokens of either and the rest}, filled up to
    `quota` by confidence; with `patience` 0 nothing is compared. LESS (arXiv:2606.16908), as its
    code decodes LLaDA; for Dream it has another rule (docs/migrating.md). Distributions are the
    model's own at every temperature. A block goes on until it has no mask, where the authors' code
    can leave some.
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
        """Nothing seen."""
        same = torch.zeros(batch, length, dtype=torch.int64)
        return Agreement(Summary.empty(batch, length, self.top), same)

    def step(self, state: Agreement, view: StepView) -> tuple[Agreement, Decision]:
        """The sure and unchanged ones, the surest at least."""
        confidence, now = view.want("confidence"), Summary.of(view)
        agrees = (now.tokens[..., :1] == state.before.tokens[..., :1]).all(-1)
        same = counted(state.same, agrees, view)
        quiet = js_divergence(now, state.before) <= self.drift
        settled = (confidence >= self.threshold) & (same >= self.patience)
        if self.patience:  # with none, no forward has to be compared with
            settled &= quiet & (view.step > 0)[:, None]
        scores = view.tempered(confidence)
        chosen = at_least(view.masked & settled, scores, view.masked, view.quota)
        return Agreement(now, same), Decision(chosen)
