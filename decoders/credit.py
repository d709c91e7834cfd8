"""Accumulate evidence for tokens over forward passes."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.select import at_least, fresh
from dlm.options import boolean, integer, number
from dlm.types import Adjustment, Decision, StepView

MOST_STRENGTH = 1e6  # a logit must stay finite
MOST_SLOTS = 4096  # every position allocates memory for all slots


class Credits(NamedTuple):
    """The tokens that each position has predicted, and their credit."""

    tokens: Tensor  # int64 [B, W, J]
    credit: Tensor  # float32 [B, W, J], 0 for an empty slot


@dataclass(frozen=True, slots=True)
class Credit(Policy):
    """Threshold decoding of logits l + strength ln(1 + C), C credit of tokens predicted before.

    In every forward pass C decays by the factor `decay`, and the best token of each masked position
    gains c^exponent. Then positions with c >= `threshold` under the adjusted logits are committed,
    at least `quota`. Wang et al. 2025 (CreditDecoding, arXiv:2510.06133), eq. 5 to 7. Credit is
    kept per row and block. Each position remembers its `slots` largest credits; a new token
    replaces the smallest.

    Args:
        threshold: minimum confidence under the adjusted logits.
        strength: weight of the credit in the logits.
        decay: factor on existing credit in every forward pass.
        exponent: exponent of the confidence that is credited.
        adaptive: use the paper's parameter-free form: strength and decay are 1 - masks / blanks of
            the block, and the exponent is 1.
        slots: number of tokens that a position remembers.
    """

    threshold: float = 0.9
    strength: float = 0.7
    decay: float = 0.8
    exponent: float = 0.2
    adaptive: bool = False
    slots: int = 16
    paper: ClassVar[str] = "arXiv:2510.06133"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})
    adjust_needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def __post_init__(self) -> None:
        for name in ("threshold", "exponent"):
            number(name, getattr(self, name), least=0.0)
        number("strength", self.strength, least=0.0, most=MOST_STRENGTH)
        number("decay", self.decay, least=0.0, most=1.0)
        boolean("adaptive", self.adaptive)
        integer("slots", self.slots, least=1, most=MOST_SLOTS)

    def init_state(self, batch: int, length: int) -> Credits:
        """No credit."""
        shape = (batch, length, self.slots)
        tokens = torch.zeros(shape, dtype=torch.int64)
        return Credits(tokens, torch.zeros(shape, dtype=torch.float32))

    def adjust(self, state: Credits, view: StepView) -> tuple[Credits, Adjustment]:
        """Credit the best tokens, and return the bonus for the logits."""
        masks, committed = view.masked.sum(-1), view.editable.sum(-1)
        seen = (committed.float() / (masks + committed).clamp(min=1))[:, None, None]
        decay, strength = (seen, seen) if self.adaptive else (self.decay, self.strength)
        exponent = 1.0 if self.adaptive else self.exponent
        credit = fresh(view.step, state.credit, 0.0) * decay
        best = view.sampled[..., None]
        own = (state.tokens == best) & (credit > 0)
        # Use the slot that already holds the best token, else the one with the least credit.
        slot = torch.where(own, -1.0, credit).argmin(-1, keepdim=True)
        before = (credit * own).sum(-1, keepdim=True)
        gain = view.want("confidence")[..., None] ** exponent
        tokens = state.tokens.scatter(-1, slot, best)
        credit = credit.scatter(-1, slot, before + gain) * view.masked[..., None]
        state = Credits(tokens, credit)
        return state, Adjustment(tokens=tokens, bonus=strength * credit.log1p())

    def step(self, state: Credits, view: StepView) -> tuple[Credits, Decision]:
        """Commit positions at or above the threshold, at least `quota`."""
        confidence = view.want("confidence")
        sure = view.masked & (confidence >= self.threshold)
        scores = view.tempered(confidence)
        return state, Decision(at_least(sure, scores, view.masked, view.quota))
