"""Variable-length attention over packed rows, by a dedicated kernel if there is one.

Shapes: N tokens of all rows, B rows, H heads, G heads of keys and values, E head width.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

AMPERE = (8, 0)
WIDEST = 256

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""(query [N, H, E], key and value [N, G, E], int32 [B + 1] row bounds, longest row, scaling) to
[N, H, E]."""


@cache
def kernel() -> Kernel | None:
    """The kernel of flash-attn (Dao 2023, arXiv:2307.08691), else PyTorch's own, else None."""
    for module, name, make in (
        ("flash_attn", "flash_attn_varlen_func", of_flash_attn),
        ("torch.nn.attention.varlen", "varlen_attn", of_torch),
    ):
        try:
            return make(getattr(import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return None


def of_flash_attn(function: Callable[..., Tensor]) -> Kernel:
    """A kernel from `flash_attn.flash_attn_varlen_func`."""

    def run(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
        return function(q, k, v, bounds, bounds, longest, longest, softmax_scale=scale)

    return run


def of_torch(function: Callable[..., Tensor]) -> Kernel:
    """A kernel from `torch.nn.attention.varlen.varlen_attn`, with arguments that all versions take.

    Before 2.12 it requires as many key heads as query heads, and has no scaling but 1 / sqrt(E).
    """

    def run(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        usual = q.shape[-1] ** -0.5
        q = q if scale == usual else q * (scale / usual)
        return function(q, k, v, bounds, bounds, longest, longest)

    return run


def by_rows(query: Tensor) -> bool:
    """Whether a ragged batch is attended row by row rather than padded; `query` is [B, H, L, E].

    True on a CPU, where a call costs little next to its work and padding is work, unless a row has
    too few heads to keep all threads busy.
    """
    return query.device.type == "cpu" and query.shape[1] >= torch.get_num_threads()


def suits(query: Tensor) -> bool:
    """Whether the kernel supports it: half precision, usual head sizes, Ampere or later."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    width = query.shape[-1]
    usual = width % 8 == 0 and width <= WIDEST
    return usual and torch.cuda.get_device_capability(query.device) >= AMPERE and bool(kernel())
