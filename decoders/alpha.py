"""Masking schedules alpha(t), given as lambda(t) = ln(1 - alpha(t)) for first-hitting sampling.

A data token is still unmasked at time t with probability alpha(t); t = 1 is noise, t = 0 is data.
Given that a position is masked at t, its unmasking time T has P(T <= s) = (1 - alpha(s)) /
(1 - alpha(t)), whatever its token and whatever the network predicts. Hence
lambda(T) = lambda(t) + ln U with U uniform.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-3  # fraction that the log-linear schedule of MDLM leaves unmasked at t = 1


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
"""Maps each name to (lambda(t), t(lambda)), both float64 to float64."""


def hitting_time(alpha: str, time: Tensor, uniform: Tensor) -> Tensor:
    """Times at which masked positions unmask: t(lambda(time) + ln(1 - u)), float64.

    The formula uses 1 - u instead of u: with many positions the next one unmasks almost at once,
    and float32 noise has fine resolution only near 0.

    Args:
        alpha: name of the schedule.
        time: float64, a time at which the positions are still masked.
        uniform: float32 noise that broadcasts with `time`.
    """
    log_masked, time_of = ALPHAS[alpha]
    return time_of(log_masked(time) + torch.log1p(-uniform.double()))
