"""What a position predicted before, kept as its likeliest tokens and the rest of the mass.

Shapes: B rows, W window, K listed tokens.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dlm.types import StepView

TINY = 1e-7  # what rounding leaves in a bucket that holds nothing
LN2: Final = math.log(2)


class Summary(NamedTuple):
    """The listed tokens of each position; what no token of the list holds is one last bucket.

    Divergences of two summaries are those of the distributions where the vocabulary is no longer
    than the list.
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
    """Both distributions on the partition by the tokens that both list.

    Returns:
        p and q of each token of `now`, 0 where `before` does not list it, float32 [B, W, K]; and
        the mass of the rest in each, float32 [B, W].
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
    """KL(now || before), nats, float32 [B, W]: the least that fits both lists.

    At most that of the distributions, by the data processing inequality.

    Tokens in both lists count on their own. A token that only `now` lists had at most the least
    probability that `before` lists: those that now have more are one bucket S with
    q(S) <= min(|S| q_least, its share of the rest), and all else is another. Both steps can only
    lower the divergence, and a token that comes from nowhere still raises it.
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

    A token that only one of them has counts as one of no probability in the other, whose rest it
    may have been in: what comes into a list, or leaves it, is drift.
    """
    same = now.tokens[..., :, None] == before.tokens[..., None, :]
    came = (now.probabilities * ~same.any(-1)).sum(-1)
    gone = (before.probabilities * ~same.any(-2)).sum(-1)
    p, q = now.probabilities * same.any(-1), (same * before.probabilities[..., None, :]).sum(-1)
    rest_p, rest_q = ((1 - x.probabilities.sum(-1)).clamp(min=0.0) for x in (now, before))
    # TINY in both: half of the least number that there is would be none.
    middle, rest = (p + q).clamp(min=TINY) / 2, (rest_p + rest_q).clamp(min=TINY) / 2
    first = _relative(p, middle).sum(-1) + _relative(rest_p, rest)
    second = _relative(q, middle).sum(-1) + _relative(rest_q, rest)
    return ((first + second + (came + gone) * LN2) / 2).clamp(0.0, LN2)


def log_ratio(now: Summary, before: Summary) -> Tensor:
    """Each ln p - ln q of the tokens of `now`, 0 where `before` lists none; float32 [B, W, K]."""
    p, q, _, _ = shared(now, before)
    return torch.where((p > 0) & (q > 0), p.log() - q.log(), 0.0)


def counted(streak: Tensor, holds: Tensor, view: StepView) -> Tensor:
    """A streak one longer where the condition holds and the block has an earlier forward."""
    longer = (streak + 1) * holds
    return longer.masked_fill((view.step == 0)[:, None], 0)
