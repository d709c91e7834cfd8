"""Commit confident positions, unless positions with similar predictions compete with them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.history import Summary
from dlm.decoders.select import at_least, exact_sum, log_margin
from dlm.options import integer, number
from dlm.types import Decision, StepView

PAIRS = 1 << 22  # most pairs of listed tokens that are compared at once
GRAIN = 2.0**20
"""Couplings and strengths are rounded to multiples of 1 / GRAIN, so that sums of their products are
exact in float64, whatever the order."""


@dataclass(frozen=True, slots=True)
class MeanField(Stateless):
    """Commit every position of strength q_i >= `threshold`, and at least `quota`.

    q_i starts as sigma(b_i). Then, `iterations` times, q_i <- sigma(b_i - sum_{j != i} D_ij q_j)
    over the masks of the block, with b = ln p_(1) - ln p_(2) and D_ij = 1 - JS(p_i, p_j) / ln 2.
    Positions that predict the same tokens suppress each other. Zoabi et al. 2026 (mean-field
    parallel decoding, arXiv:2606.15805), Alg. 1.

    The authors' code was not available. The initial q and the threshold come from a reproduction.
    That reproduction also divides D by its maximum, and says that the paper does; this does not.

    Distributions are compared by the 8 likeliest tokens of each. A token that a list lacks has
    probability 0 there, and all unlisted tokens count as one token.
    """

    threshold: float = 0.9
    iterations: int = 2
    paper: ClassVar[str] = "arXiv:2606.15805"
    needs: ClassVar[frozenset[str]] = frozenset({"top_tokens", "position_noise"})
    top: ClassVar[int] = 8
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0.0)
        integer("iterations", self.iterations, least=0, most=1000)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit positions that stay strong beside the others, at least `quota`."""
        strength = self.strength(view)
        sure = view.masked & (strength >= self.threshold)
        return None, Decision(at_least(sure, view.tempered(strength), view.masked, view.quota))

    def strength(self, view: StepView) -> Tensor:
        """Strengths q after the last iteration, float32 [B, W]."""
        alone = log_margin(view.want("top_probabilities"))
        strength = alone.sigmoid()
        if not self.iterations:
            return strength
        coupling = coupled(Summary.of(view), view.masked)
        for _ in range(self.iterations):
            rounded = (strength.double() * GRAIN).round() / GRAIN
            held = (coupling @ rounded[..., None]).squeeze(-1)
            strength = (alone - held.float()).sigmoid()
        return strength


def coupled(now: Summary, masked: Tensor) -> Tensor:
    """D between the masks of a block, 0 elsewhere and on the diagonal; float64 [B, W, W].

    Columns are compared in chunks: all at once would take K^2 times the memory.
    """
    batch, width, count = now.tokens.shape
    some = max(1, PAIRS // (batch * width * count**2))
    rest = (1 - exact_sum(now.probabilities, now.tokens >= 0)).clamp(min=0.0).float()
    parts = []
    for begin in range(0, width, some):
        mine = slice(begin, begin + some)
        same = now.tokens[:, mine, None, :, None] == now.tokens[:, None, :, None, :]
        theirs = (same * now.probabilities[:, None, :, None, :]).sum(-1)
        shared = common(now.probabilities[:, mine, None], theirs)
        listed = exact_sum(shared, torch.ones_like(shared, dtype=torch.bool))
        parts.append(listed + common(rest[:, mine, None], rest[:, None]))
    pairs = masked[:, :, None] & masked[:, None, :]
    pairs = pairs & ~torch.eye(width, dtype=torch.bool, device=masked.device)
    return (torch.cat(parts, 1).masked_fill(~pairs, 0.0) * GRAIN).round() / GRAIN


def common(p: Tensor, q: Tensor) -> Tensor:
    """What one token adds to 1 - JS / ln 2: (p log2(1 + q / p) + q log2(1 + p / q)) / 2."""
    both = p + q
    bits = torch.xlogy(both, both) - (torch.xlogy(p, p) + torch.xlogy(q, q))
    return bits.clamp(min=0.0) / (2 * math.log(2))
