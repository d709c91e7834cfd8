"""Weight confidence by the density of decoded positions around a position."""

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
"""Kernel values are rounded to multiples of 1 / UNIT, so that their float64 sums are exact. A row's
density then depends neither on the order of addition nor on other rows or padding columns."""

REACH = 7.0  # standard deviations beyond which the kernel is below 0.5 / UNIT


@dataclass(frozen=True, slots=True)
class CertaintyPrior(Stateless):
    """Commit the `quota` best by c_i d_i, d the density of decoded positions around i.

    d_i = sum_j k(i - j) [j is decoded] / sum_j k(i - j), k(n) = exp(-n^2 / (2 sigma^2)), over all
    integers j. Positions before the generation count as decoded. Positions after it count as
    decoded if the generation's last position is decoded. Decoding by certainty prior of Jiang et
    al. 2025 (d2Cache, arXiv:2509.23094), eq. 3, which proceeds nearly left to right without blocks.

    In the paper, positions farther before the generation than its own length do not count as
    decoded. For a generation of at least 7 sigma the result is the same. Tokens given in later
    blocks count as masks. The density is at least 2^-32, so confidence alone decides far from all
    decoded positions, and everywhere if `sigma` is much below 1.

    Args:
        sigma: standard deviation of the kernel, in positions.
    """

    sigma: float = 10.0
    paper: ClassVar[str] = "arXiv:2509.23094"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        number("sigma", self.sigma, least=0.01, most=10000.0)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by confidence times density."""
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
        place = view.block_start[:, None] + columns  # `positions` are clamped in a short block
        last = view.row_stop[:, None] - 1
        # Masks continue after the block up to the row's end, and past it if the last one is masked.
        open_end = (last > place[:, -1:]) | ((place == last) & view.masked).any(-1, keepdim=True)
        ahead = torch.minimum(place[:, -1:], last) + 1 - place
        masks = view.masked.double() @ near + beyond[ahead.clamp(0, reach)] * open_end
        return (1 - masks / (kernel[0] + 2 * beyond[1])).clamp(min=1 / UNIT)
