"""Argument checks shared by the streamed statistics and their reference.

Shapes: N rows, V vocabulary.
"""

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor

from dlm.kernels.noise import NoiseKey
from dlm.kernels.tiles import Bonus, Suppressed

STATISTICS = frozenset(
    {
        "confidence",
        "margin",
        "entropy",
        "token_probability",
        "token_log_probability",
        "sampled_log_probability",
    }
)
"""Names that `wanted` may contain."""
LAWS = ("model", "sampling")
"""Values of `law`."""


def check_sampling(
    temperature: float | Tensor, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    """Refuse sampling options that define no distribution; `check_tensors` checks a tensor.

    Raises:
        ValueError: If an option breaks its rule.
    """
    number = not isinstance(temperature, Tensor)
    if number and not (_is_real(temperature) and math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature!r}")
    whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if top_k is not None and (not whole or top_k < 1):
        raise ValueError(f"top_k must be an integer of at least 1, got {top_k!r}")
    if top_p is not None and not (_is_real(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be in (0, 1], got {top_p!r}")
    if min_p is not None and not (_is_real(min_p) and 0 <= min_p <= 1):
        raise ValueError(f"min_p must be in [0, 1], got {min_p!r}")


def check_report(law: str, scale_statistics: bool, top: int) -> None:
    """Refuse options that define no statistics.

    Raises:
        ValueError: If an option breaks its rule.
    """
    if law not in LAWS:
        raise ValueError(f"law must be {' or '.join(map(repr, LAWS))}, got {law!r}")
    if not isinstance(scale_statistics, bool):
        raise ValueError(f"scale_statistics must be True or False, got {scale_statistics!r}")
    if not isinstance(top, Integral) or isinstance(top, bool) or top < 0:
        raise ValueError(f"top must be an integer of at least 0, got {top!r}")


def check_wanted(wanted: Collection[str]) -> None:
    """Refuse unknown statistics.

    Raises:
        ValueError: With the closest name and the list of names.
    """
    for name in wanted:
        if name not in STATISTICS:
            close = get_close_matches(name, STATISTICS, 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(STATISTICS))
            raise ValueError(f"wanted must name statistics out of {known}; got {name!r}{hint}")


def check_tensors(
    logits: Tensor,
    wanted: Collection[str],
    temperature: float | Tensor,
    suppressed: Tensor | Suppressed | None,
    tokens: Tensor | None,
    key: NoiseKey | None,
    scale: Tensor | None,
) -> None:
    """Refuse tensors of a wrong shape or dtype, and missing ones that are needed.

    The values of `suppressed`, `scale` and `temperature` are checked on the CPU only: on a GPU the
    check would sync.

    Raises:
        ValueError: With the argument, the rule and the value found.
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point of shape [N, V], got {_found(logits)}")
    num_rows, vocabulary = logits.shape
    mask = suppressed.mask if isinstance(suppressed, Suppressed) else suppressed
    _check_shape("suppressed", mask, torch.bool, vocabulary)
    _check_shape("tokens", tokens, torch.int64, num_rows)
    _check_shape("scale", scale, torch.float32, num_rows)
    if suppressed is not None and mask is not None and mask.device.type == "cpu":
        check_left(suppressed)
    check_positive("scale", scale)
    each = temperature if isinstance(temperature, Tensor) else None
    _check_shape("temperature", each, torch.float32, num_rows)
    check_positive("temperature of each row", each)
    for name in ("token_probability", "token_log_probability"):
        if tokens is None and name in wanted:
            raise ValueError(f"tokens must be given for {name!r}, got None")
    if key is None and each is not None:
        raise ValueError("key must be given for a temperature of each row, got None")
    if key is None and temperature > 0:
        raise ValueError(f"key must be given for temperature {temperature}, got None")
    if key is not None and len(key) != num_rows:
        raise ValueError(f"key must have one entry a row, {num_rows}, got {len(key)}")


def check_left(suppressed: Tensor | Suppressed) -> None:
    """Refuse suppression on the CPU, bool [V], that leaves no token to draw.

    Raises:
        ValueError: If all tokens are suppressed.
    """
    if isinstance(suppressed, Suppressed):
        vocabulary, some = len(suppressed.mask), suppressed.ids
        full = some is not None and len(some) == vocabulary
    else:
        vocabulary = len(suppressed)
        # This takes microseconds; `all` of bool takes twenty times as long.
        full = bool(suppressed.view(torch.uint8).amin())
    if full:
        raise ValueError(f"suppressed must leave a token, got all of {vocabulary}")


def check_positive(name: str, value: Tensor | None) -> None:
    """Refuse invalid factors on the CPU; on a GPU the check would have to wait for the device.

    Raises:
        ValueError: If a value is not finite or not above 0.
    """
    if value is not None and value.device.type == "cpu":
        bad = value[~((value > 0) & (value < torch.inf))].tolist()
        if bad:
            raise ValueError(f"{name} must be finite and above 0, got {bad[0]}")


def check_bonus(logits: Tensor, bonus: Bonus | None) -> None:
    """Refuse a bonus that does not fit the logits.

    Raises:
        ValueError: With the rule and the value found.
    """
    if bonus is None:
        return
    tokens, values = bonus
    fits = tokens.dim() == 2 and tokens.shape == values.shape and len(tokens) == len(logits)
    if not fits or tokens.dtype != torch.int64 or values.dtype != torch.float32:
        raise ValueError(
            f"bonus must be int64 and float32 of one shape [{len(logits)}, J], "
            f"got {_found(tokens)} and {_found(values)}"
        )


def _check_shape(name: str, value: Tensor | None, dtype: torch.dtype, length: int) -> None:
    if value is not None and (value.dtype != dtype or value.shape != (length,)):
        raise ValueError(f"{name} must be {dtype} of shape [{length}], got {_found(value)}")


def _found(value: Tensor) -> str:
    return f"{value.dtype} {list(value.shape)}"


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
