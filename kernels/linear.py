"""Matrix products of a network: by torch, and on a CPU by oneDNN.

For float32 products torch calls the BLAS it was built with. There the result of a token depends on
how many other tokens there are: MKL adds the last tokens in another order if there are few. A
separate activation is another pass over the result, in which the remainder at the end of a
thread's share uses another exponential than the rest.

oneDNN, which torch includes, gives a token the same bits in every batch. It applies the activation
as it writes the product, and multiplies large matrices faster if MKL does not know the processor.
It is slower to start on small matrices: these use the BLAS, with token counts for which it adds in
the same order.

`torch.backends.mkldnn.enabled = False` uses torch for everything.

Shapes: M tokens, K columns, N rows of the weights, F rows of a gate.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

ACTIVATIONS: Final[dict[str, tuple[Callable[[Tensor], Tensor], str, str]]] = {
    "silu": (F.silu, "swish", ""),
    "sigmoid": (torch.sigmoid, "sigmoid", ""),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu", "tanh"),
}
"""Activations that can follow a product: the torch function, and oneDNN's name and algorithm."""

SMALL: Final = 1 << 17
"""Matrices with fewer elements take oneDNN longer than it saves."""
LINE: Final = 16
"""MKL is used if K is a multiple of this and N at least this: otherwise its result depends on
memory addresses."""
FOUR: Final = 4
"""Tokens that MKL processes at a time; with few tokens it adds the remainder in another order."""
ENOUGH: Final = 12
"""From this many tokens on MKL adds all in the same order, whatever their number."""

_PLAIN: Final = (torch.nn.Parameter, Tensor)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """f(x W^T + b), [..., N] in the dtype of `x`.

    Args:
        x: [..., K].
        weight: W, [N, K].
        bias: b, [N].
        activation: f, one of `ACTIVATIONS`; None for none.
    """
    rows, columns = weight.shape
    if not covers(x, weight) or x.shape[-1] != columns:
        return linear_reference(x, weight, bias, activation)
    if activation is not None or rows * columns >= SMALL or rows < LINE or columns % LINE:
        return _by_onednn(x, weight, bias, activation)
    flat = x.reshape(-1, columns)  # torch would multiply a strided tensor in batches
    tokens = len(flat)
    if tokens < ENOUGH and tokens % FOUR:
        flat = F.pad(flat, (0, 0, 0, -tokens % FOUR))
    return F.linear(flat, weight, bias)[:tokens].view(*x.shape[:-1], rows)


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """`linear` by torch."""
    made = F.linear(x, weight, bias)
    return made if activation is None else ACTIVATIONS[activation][0](made)


def gated(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """`layers.gated` of tokens [..., K], with biases [F] of both matrices."""
    if covers(x, gate, up) and x.shape[-1] == gate.shape[-1] == up.shape[-1]:
        opened = _by_onednn(x, gate, gate_bias, "silu")
        return _by_onednn(x, up, up_bias, factor=opened)
    return F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)


def covers(x: Tensor, *weights: Tensor) -> bool:
    """Whether `linear` and `gated` have a path of their own for tokens [..., K] and matrices.

    They have to be on a CPU, of a dtype that oneDNN multiplies, and need no gradient. A quantised
    or sharded matrix may be a Tensor subclass that looks like a plain one.
    """
    # As few checks as possible: they run for every matrix in every forward pass.
    if not x.is_cpu or torch.is_grad_enabled() or _transformed():
        return False
    dtype = x.dtype
    if dtype not in _dtypes() or type(x) not in _PLAIN or torch.is_autocast_enabled("cpu"):
        return False
    for each in weights:
        if type(each) not in _PLAIN or each.dtype != dtype or not each.is_cpu:
            return False
        if not each.is_contiguous():
            return False
    return bool(torch.backends.mkldnn.enabled) and x.numel() > 0


def _transformed() -> bool:
    """Whether the computation is traced, compiled, transformed or differentiated."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


@cache
def _dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes that oneDNN multiplies on this processor; none if torch was built without it."""
    operations: Any = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operations, "_linear_pointwise")):
        return ()
    half = operations._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


def _by_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """f(x W^T + b), or x W^T + b times a factor [..., N] if one is given."""
    if x.numel() == x.shape[-1]:  # oneDNN has another path for one token: multiply two
        pair = x.reshape(1, -1).expand(2, -1)
        factor = None if factor is None else factor.reshape(1, -1).expand(2, -1)
        return _by_onednn(pair, weight, bias, activation, factor)[:1].view(*x.shape[:-1], -1)
    operation: Any = torch.ops.mkldnn._linear_pointwise
    if factor is not None:
        product: Tensor = operation.binary(x, factor, weight, bias, "mul")
        return product
    _, name, algorithm = ("", "none", "") if activation is None else ACTIVATIONS[activation]
    made: Tensor = operation.default(x, weight, bias, name, [], algorithm)
    return made
