"""Masking schedules alpha(t), in the form that first hitting needs: lambda(t) = ln(1 - alpha(t)).

A token of the data survives to time t with probability alpha(t): t = 1 is noise, t = 0 data. Given
that a position is masked at t, it unmasks at T with P(T <= s) = (1 - alpha(s)) / (1 - alpha(t)),
whatever it holds and whatever the network says: lambda(T) = lambda(t) + ln U, U uniform.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-3  # what the log-linear schedule of MDLM leaves unmasked at t = 1


def _cosine_log(t: Tensor) -> Tensor:
    return (math.pi / 2 * (1 - t)).cos().clamp(min=0.0).log()


def _cosine_time(log_masked: Tensor) -> Tensor:
    return 1 - 2 / math.pi * log_masked.exp().clamp(0.0, 1.0).arccos()


ALPHAS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (torch.log, torch.exp),  # alpha = 1 - t
    "cosine": (_cosine_log, _cosine_time),  # 1 - alpha = cos(pi (1 - t) / 2)
    "log_linear": (  # 1 - alpha = (1 - FLOOR) t
        lambda t: t.log() + math.log1p(-FLOOR),
        lambda log_masked: (log_masked - math.log1p(-FLOOR)).exp(),
    ),
}
"""Name -> (lambda(t), t(lambda)), float64 to float64."""


def hitting_time(alpha: str, time: Tensor, uniform: Tensor) -> Tensor:
    """When masked positions unmask: t(lambda(time) + ln(1 - u)), float64.

    1 - u, not u: with many positions the next one unmasks almost at once, and float32 noise is
    fine only near 0.

    Args:
        alpha: name of the schedule.
        time: float64, where the positions are still masked.
        uniform: float32 noise that broadcasts with it.
    """
    log_masked, time_of = ALPHAS[alpha]
    return time_of(log_masked(time) + torch.log1p(-uniform.double()))
