"""Products of 8-bit integers: weights scaled per output channel, activations per token.

The vector-wise scheme of Dettmers et al. 2022 (arXiv:2208.07339, section 3.1), without separate
outliers. Scales of tokens are computed dynamically, as in ZeroQuant (Yao et al. 2022,
arXiv:2206.01861):

    y[m, n] = s[m] t[n] sum_k u[m, k] q[n, k] + b[n]
    u = round(x / s), s[m] = max_k |x[m, k]| / A
    q = round(w / t), t[n] = max_k |w[n, k]| / 127

The sum of integers is exact in 32 bits and is rounded to float32 once. A token's product therefore
depends on no other token, and has the same bits in every batch. A is `steps` on a CPU, and 127
elsewhere.

Shapes: M tokens, K columns, N rows of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS: Final = 127  # largest quantised weight
ACTIVATIONS: Final = (127, 63)
"""Largest quantised activation; which of them is exact depends on the processor."""
LEAST: Final = 1e-30  # smallest divisor of a row, so that its inverse is finite
FEWEST: Final = 32  # a product on a GPU is padded to this many tokens: torch needs at least 17
MULTIPLE: Final = 8  # K and N have to be multiples of this on a GPU
WIDEST: Final = (2**31 - 1) // (WEIGHTS * ACTIVATIONS[0])  # most columns whose sum fits 32 bits


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A quantised matrix as loaded, for a GPU."""

    weight: Tensor  # int8 [N, K], q
    scale: Tensor  # float32 [N], t
    bias: Tensor | None  # [N]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A quantised matrix in the layout of oneDNN."""

    weight: Tensor  # int8 [K, N], opaque
    scale: Tensor  # float32 [N], t
    zeros: Tensor  # int32 [N]


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers q, int8 [..., N, K], and scales t, float32 [..., N], of matrices [..., N, K]."""
    weight = weight.float()
    largest = weight.abs().amax(-1).clamp(min=LEAST)
    whole = (weight * (WEIGHTS / largest)[..., None]).round_().to(torch.int8)
    return whole, steps_of(largest, WEIGHTS)


def packed(weight: Tensor, scale: Tensor) -> Packed:
    """Pack a matrix for products: int8 [N, K] on a CPU, with its scales, float32 [N].

    Raises:
        ValueError: The sum of K products may exceed 32 bits.
    """
    check_width(weight.shape[1])
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    # oneDNN looks at the shape alone and ignores strides.
    return Packed(operations().qlinear_prepack(weight.contiguous(), None), scale, zeros)


def check_width(columns: int) -> None:
    """Refuse a number of columns whose sum of products may exceed 32 bits.

    Raises:
        ValueError: There are too many columns.
    """
    if columns > WIDEST:
        raise ValueError(f"a layer must have at most {WIDEST} inputs, got {columns}")


def unpacked(matrix: Packed) -> Tensor:
    """The integers of a matrix, int8 [N, K]."""
    return matrix.weight.to_dense().t().contiguous()


def product(x: Tensor, matrix: Packed, bias: Tensor | None = None) -> Tensor:
    """The product of tokens [M, K] and a matrix, [M, N] in the dtype of the tokens.

    Args:
        x: tokens on a CPU.
        matrix: a result of `packed`.
        bias: b, [N].
    """
    most = steps()
    rounded, scale = tokens(x, most)
    out = multiply(rounded, matrix, most).mul_(scale)
    if bias is not None:
        out += bias
    return out.to(x.dtype)


def product_unpacked(x: Tensor, matrix: Matrix) -> Tensor:
    """`product` with a matrix as loaded, by the integer product that torch has for GPUs.

    Args:
        x: [M, K], K and N multiples of `MULTIPLE` on a GPU.
        matrix: on the same device.
    """
    rounded, scale = integers(x, ACTIVATIONS[0])
    padded = F.pad(rounded.to(torch.int8), (0, 0, 0, max(0, FEWEST - len(x))))
    sums: Tensor = torch._int_mm(padded, matrix.weight.t())[: len(x)]
    out = sums.float().mul_(matrix.scale).mul_(scale)
    if matrix.bias is not None:
        out += matrix.bias
    return out.to(x.dtype)


def grouped(x: Tensor, matrices: Sequence[Packed], counts: Sequence[int]) -> Tensor:
    """Products of tokens [M, K] with several matrices, float32 [M, N].

    Args:
        x: tokens on a CPU.
        matrices: results of `packed`.
        counts: number of consecutive tokens for each matrix; M in total.
    """
    most = steps()
    rounded, scale = tokens(x, most)
    made = torch.empty((len(x), len(matrices[0].scale)), dtype=torch.float32)
    parts = zip(rounded.split([*counts]), made.split([*counts]), matrices, strict=True)
    for part, place, matrix in parts:
        if len(part):
            place.copy_(multiply(part, matrix, most))
    return made.mul_(scale)


def product_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`product` by 64-bit integer operations, of a matrix int8 [N, K] and its scales."""
    most = steps()
    rounded, own = tokens(x, most)
    out = ((rounded.long() - zero(most)) @ weight.long().t()).float() * scale * own
    return (out if bias is None else out + bias).to(x.dtype)


def tokens(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers u + A + 1 of tokens, uint8 [M, K], and their scales as in `integers`."""
    rounded, scale = integers(x, most)
    return rounded.add_(zero(most)).to(torch.uint8), scale


def integers(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers u of tokens, float32 [M, K], and their scales s, float32 [M, 1].

    If a token is not finite, its scale is not finite either.

    Args:
        x: [M, K].
        most: A.

    Raises:
        ValueError: A gradient is required: rounding has none.
    """
    check_gradient(x)
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=LEAST)
    # Separate operations round every element alike, whatever its place; a fused one might not.
    return (x * (most / largest)).round_(), steps_of(largest, most)


def steps_of(largest: Tensor, most: int) -> Tensor:
    """Quantisation step: the largest value divided by the number of steps."""
    # Divide by a tensor: a GPU divides by a number by multiplying with its inverse, rounding twice.
    return largest / torch.full_like(largest, most)


def check_gradient(x: Tensor) -> None:
    """Refuse tokens that require a gradient.

    Raises:
        ValueError: A gradient is required: rounding has none.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("products of 8-bit integers have no gradient: use torch.no_grad()")


def zero(most: int) -> int:
    """The zero point of activations, as products take them unsigned."""
    return most + 1


def multiply(rounded: Tensor, matrix: Packed, most: int) -> Tensor:
    """t[n] sum_k (v[m, k] - A - 1) q[n, k], float32 [M, N], of v, uint8 [M, K]."""
    made: Tensor = operations().qlinear_pointwise(
        *(rounded, 1.0, zero(most)),
        *(matrix.weight, matrix.scale, matrix.zeros),
        *(None, 1.0, 0, torch.float32, "none", [], ""),  # no bias, output scale or activation
    )
    return made


def operations() -> Any:
    """The oneDNN operations of torch."""
    return torch.ops.onednn


@cache
def steps() -> int:
    """Largest quantised activation A that is exact on this processor: 127 or 63.

    Processors without VNNI add pairs of products in 16 bits and saturate. A pair of products of up
    to 255 by 127 does not fit, a pair of up to 127 by 127 does.

    Raises:
        ValueError: torch lacks these products here, or none of them is exact.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(operations(), "qlinear_pointwise")):
        raise ValueError(
            "products of 8-bit integers need a torch with oneDNN, which this one was built without"
        )
    found = next((most for most in ACTIVATIONS if exact(most)), None)
    if found is None:
        raise ValueError("products of 8-bit integers are not exact on this processor")
    return found


def exact(most: int) -> bool:
    """Whether products with activations of up to `most` steps are exact, at their largest."""
    weight = torch.full((32, 256), WEIGHTS, dtype=torch.int8)
    weight[::2] = -WEIGHTS
    matrix = packed(weight, torch.ones(32, dtype=torch.float32))
    rounded = torch.full((32, 256), zero(most) + most, dtype=torch.uint8)
    expected = (rounded.long() - zero(most)) @ weight.long().t()
    return torch.equal(multiply(rounded, matrix, most), expected.float())
