"""Earlier predictions of a position, kept as its likeliest tokens and the remaining mass.

Shapes: B rows, W window, K listed tokens.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dlm.types import StepView

TINY = 1e-7  # mass that rounding leaves in an empty bucket
LN2: Final = math.log(2)


class Summary(NamedTuple):
    """The listed tokens of each position; all unlisted tokens form one last bucket.

    If the vocabulary is no longer than the list, divergences of two summaries equal those of the
    full distributions.
    """

    tokens: Tensor  # int64 [B, W, K], -1 where there is none
    probabilities: Tensor  # float32 [B, W, K]

    @classmethod
    def empty(cls, batch: int, length: int, count: int) -> "Summary":
        """No observation yet."""
        tokens = torch.full((batch, length, count), -1)
        return cls(tokens, torch.zeros(batch, length, count, dtype=torch.float32))

    @classmethod
    def of(cls, view: StepView) -> "Summary":
        """The tokens that a view lists."""
        return cls(view.want("top_tokens"), view.want("top_probabilities"))


def shared(now: Summary, before: Summary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both distributions, restricted to the tokens that both list.

    Returns:
        p and q of each token of `now`, 0 where `before` does not list it, float32 [B, W, K]; and
        the remaining mass of each distribution, float32 [B, W].
    """
    same = now.tokens[..., :, None] == before.tokens[..., None, :]
    both = same.any(-1)
    q = (same * before.probabilities[..., None, :]).sum(-1)
    p = now.probabilities * both
    return p, q, (1 - p.sum(-1)).clamp(min=0.0), (1 - q.sum(-1)).clamp(min=0.0)


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """Terms p ln(p / q): 0 where p is 0, infinite where only q is."""
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0)


def kl_divergence(now: Summary, before: Summary) -> Tensor:
    """KL(now || before) in nats, float32 [B, W]: a lower bound computed from both lists.

    It is at most the divergence of the full distributions, by the data processing inequality.

    Tokens in both lists are compared one by one. A token that only `now` lists had at most the
    smallest probability that `before` lists. Those whose probability is now larger than that form
    one bucket S with q(S) <= min(|S| q_least, its share of the remaining mass); all other tokens
    form another. Both steps can only lower the divergence, and a token that newly appears still
    raises it.
    """
    p, q, rest_p, rest_q = shared(now, before)
    least = before.probabilities.amin(-1)
    risen = ((p == 0) & (now.probabilities > least[..., None])).float()
    risen_p = (now.probabilities * risen).sum(-1)
    share = rest_q * (risen_p / rest_p.clamp(min=TINY)).clamp(max=1.0)
    risen_q = torch.minimum(share, risen.sum(-1) * least)
    common = _relative(p, q).sum(-1)
    rise = _relative(risen_p, risen_q.clamp(min=TINY))
    rest = _relative((rest_p - risen_p).clamp(min=0.0), (rest_q - risen_q).clamp(min=TINY))
    return (common + rise + rest).clamp(min=0.0)


def js_divergence(now: Summary, before: Summary) -> Tensor:
    """Jensen-Shannon divergence of the lists, in [0, ln 2] nats, float32 [B, W].

    A token that only one list has counts as probability 0 in the other, although it may be part of
    the other's remaining mass: a token that enters or leaves a list counts as drift.
    """
    same = now.tokens[..., :, None] == before.tokens[..., None, :]
    came = (now.probabilities * ~same.any(-1)).sum(-1)
    gone = (before.probabilities * ~same.any(-2)).sum(-1)
    p, q = now.probabilities * same.any(-1), (same * before.probabilities[..., None, :]).sum(-1)
    rest_p, rest_q = ((1 - x.probabilities.sum(-1)).clamp(min=0.0) for x in (now, before))
    # TINY in both: half of the smallest float would underflow to 0.
    middle, rest = (p + q).clamp(min=TINY) / 2, (rest_p + rest_q).clamp(min=TINY) / 2
    first = _relative(p, middle).sum(-1) + _relative(rest_p, rest)
    second = _relative(q, middle).sum(-1) + _relative(rest_q, rest)
    return ((first + second + (came + gone) * LN2) / 2).clamp(0.0, LN2)


def log_ratio(now: Summary, before: Summary) -> Tensor:
    """Log ratio ln p - ln q of the tokens of `now`, 0 if `before` lists none; float32 [B, W, K]."""
    p, q, _, _ = shared(now, before)
    return torch.where((p > 0) & (q > 0), p.log() - q.log(), 0.0)


def counted(streak: Tensor, holds: Tensor, view: StepView) -> Tensor:
    """The streak plus one where the condition holds, else 0; 0 where a block begins."""
    longer = (streak + 1) * holds
    return longer.masked_fill((view.step == 0)[:, None], 0)
