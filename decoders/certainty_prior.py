"""Weigh confidence by how much around a position is decoded."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.select import top
from dlm.options import number
from dlm.types import Decision, StepView

UNIT = 2.0**32
"""Kernel values are multiples of 1 / UNIT, so that their sums are exact in float64: a row's density
depends neither on the order of addition nor on the rows and columns beside it."""

REACH = 7.0  # standard deviations, from where on the kernel is below half of that


@dataclass(frozen=True, slots=True)
class CertaintyPrior(Stateless):
    """Commit the `quota` best by c_i d_i, d the density of decoded positions around i.

    d_i = sum_j k(i - j) [j is decoded] / sum_j k(i - j), k(n) = exp(-n^2 / (2 sigma^2)), over all
    integers j. What lies before the generation counts as decoded, what lies behind it does where
    the generation's last position is. Decoding by certainty prior of Jiang et al. 2025 (d2Cache,
    arXiv:2509.23094), eq. 3, which goes nearly left to right without blocks.

    There nothing counts as decoded farther before the generation than its own length; for one of
    7 sigma that is the same. Tokens given in later blocks count as masks. No density is below
    2^-32: far from all that is decoded, and everywhere where `sigma` is much below 1, confidence
    decides.

    Args:
        sigma: standard deviation of the kernel, in positions.
    """

    sigma: float = 10.0
    paper: ClassVar[str] = "arXiv:2509.23094"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("sigma", self.sigma, least=0.01, most=10000.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Top-q by confidence times density."""
        scores = view.want("confidence") * self.density(view).float()
        return None, Decision(top(view.tempered(scores), view.masked, view.quota))

    def density(self, view: StepView) -> Tensor:
        """d_i of every column of the block, in [1 / UNIT, 1]; float64 [B, W]."""
        width, device = view.masked.shape[-1], view.masked.device
        reach = math.ceil(REACH * self.sigma) + 1
        away = torch.arange(reach + 1, device=device)
        kernel = (torch.exp(-(away.double() / self.sigma).square() / 2) * UNIT).round()
        beyond = kernel.flip(0).cumsum(0).flip(0)  # sum_{m >= n} k(m)
        columns = torch.arange(width, device=device)
        near = kernel[(columns[:, None] - columns).abs().clamp(max=reach)]
        place = view.block_start[:, None] + columns  # `positions` of a short block end at the row's
        last = view.row_stop[:, None] - 1
        # Masks go on behind the block up to the last position of the row, and from it if it is one.
        open_end = (last > place[:, -1:]) | ((place == last) & view.masked).any(-1, keepdim=True)
        ahead = torch.minimum(place[:, -1:], last) + 1 - place
        masks = view.masked.double() @ near + beyond[ahead.clamp(0, reach)] * open_end
        return (1 - masks / (kernel[0] + 2 * beyond[1])).clamp(min=1 / UNIT)
