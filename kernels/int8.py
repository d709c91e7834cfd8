"""Products of 8-bit integers: weights scaled by output channel, activations by token.

The vector-wise scheme of Dettmers et al. 2022 (arXiv:2208.07339, section 3.1) with no outliers kept
apart; scales of tokens are found as they come, as in ZeroQuant (Yao et al. 2022, arXiv:2206.01861):

    y[m, n] = s[m] t[n] sum_k u[m, k] q[n, k] + b[n]
    u = round(x / s), s[m] = max_k |x[m, k]| / A
    q = round(w / t), t[n] = max_k |w[n, k]| / 127

The sum is one of integers, exact in 32 bits, and is rounded to float32 once: a token's product
hangs on no other token, and has the same bits in every batch. A is `steps` on a CPU, and 127
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

WEIGHTS: Final = 127  # the largest integer that stands for a weight
ACTIVATIONS: Final = (127, 63)
"""The largest integer that stands for an activation: by what is exact on a processor."""
LEAST: Final = 1e-30  # of what a row is divided by: its inverse has to be finite
FEWEST: Final = 32  # tokens that are multiplied on a GPU at least, as torch takes no less than 17
MULTIPLE: Final = 8  # of which K and N have to be one there
WIDEST: Final = (2**31 - 1) // (WEIGHTS * ACTIVATIONS[0])  # columns whose sum fits 32 bits


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A matrix of integers as it is loaded, for a GPU."""

    weight: Tensor  # int8 [N, K], q
    scale: Tensor  # float32 [N], t
    bias: Tensor | None  # [N]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix as oneDNN lays it out."""

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
    """A matrix to multiply by: int8 [N, K] on a CPU, and its scales, float32 [N].

    Raises:
        ValueError: K products may exceed 32 bits.
    """
    check_width(weight.shape[1])
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    # oneDNN goes by the shape alone, whatever the strides.
    return Packed(operations().qlinear_prepack(weight.contiguous(), None), scale, zeros)


def check_width(columns: int) -> None:
    """Refuse sums of so many products, which may exceed 32 bits.

    Raises:
        ValueError: there are too many.
    """
    if columns > WIDEST:
        raise ValueError(f"a layer must have at most {WIDEST} inputs, got {columns}")


def unpacked(matrix: Packed) -> Tensor:
    """The integers of a matrix, int8 [N, K]."""
    return matrix.weight.to_dense().t().contiguous()


def product(x: Tensor, matrix: Packed, bias: Tensor | None = None) -> Tensor:
    """The product of tokens [M, K] and a matrix, [M, N] in the dtype of the tokens.

    Args:
        x: on a CPU.
        matrix: of `packed`.
        bias: b, [N].
    """
    most = steps()
    rounded, scale = tokens(x, most)
    out = multiply(rounded, matrix, most).mul_(scale)
    if bias is not None:
        out += bias
    return out.to(x.dtype)


def product_unpacked(x: Tensor, matrix: Matrix) -> Tensor:
    """`product` with a matrix as it is loaded, by torch, which multiplies so on a GPU.

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
        x: on a CPU.
        matrices: of `packed`.
        counts: tokens of each, in the order of the tokens; M in all.
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
    """The same by operations on 64-bit integers, of a matrix int8 [N, K] and its scales."""
    most = steps()
    rounded, own = tokens(x, most)
    out = ((rounded.long() - zero(most)) @ weight.long().t()).float() * scale * own
    return (out if bias is None else out + bias).to(x.dtype)


def tokens(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers u + A + 1 of tokens, uint8 [M, K], and their scales, as `integers`."""
    rounded, scale = integers(x, most)
    return rounded.add_(zero(most)).to(torch.uint8), scale


def integers(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers u of tokens, float32 [M, K], and their scales s, float32 [M, 1].

    Of a token that is not finite the scale is not finite either.

    Args:
        x: [M, K].
        most: A.

    Raises:
        ValueError: a gradient is asked for: steps have none.
    """
    check_gradient(x)
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=LEAST)
    # Each operation rounds alike wherever a value stands; a fused one might not.
    return (x * (most / largest)).round_(), steps_of(largest, most)


def steps_of(largest: Tensor, most: int) -> Tensor:
    """The size of a step, of so many up to the largest value."""
    # By a tensor: a GPU divides by a number as it multiplies by the inverse, which rounds twice.
    return largest / torch.full_like(largest, most)


def check_gradient(x: Tensor) -> None:
    """Refuse tokens whose gradient is asked for.

    Raises:
        ValueError: it is: steps have none.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("products of 8-bit integers have no gradient: use torch.no_grad()")


def zero(most: int) -> int:
    """What stands for 0 among activations, which products take unsigned."""
    return most + 1


def multiply(rounded: Tensor, matrix: Packed, most: int) -> Tensor:
    """t[n] sum_k (v[m, k] - A - 1) q[n, k], float32 [M, N], of v, uint8 [M, K]."""
    made: Tensor = operations().qlinear_pointwise(
        *(rounded, 1.0, zero(most)),
        *(matrix.weight, matrix.scale, matrix.zeros),
        *(None, 1.0, 0, torch.float32, "none", [], ""),  # no bias, as they come, nothing behind
    )
    return made


def operations() -> Any:
    """What torch has of oneDNN."""
    return torch.ops.onednn


@cache
def steps() -> int:
    """How many integers stand for an activation's size, A: 127, or 63.

    Processors without VNNI add up pairs of products in 16 bits, and cut off what does not fit: two
    products of up to 255 by 127 do not, two of up to 127 by 127 do.

    Raises:
        ValueError: torch has no such products here, or none that are exact.
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
    """Whether products with activations of up to so many steps are exact, at their largest."""
    weight = torch.full((32, 256), WEIGHTS, dtype=torch.int8)
    weight[::2] = -WEIGHTS
    matrix = packed(weight, torch.ones(32, dtype=torch.float32))
    rounded = torch.full((32, 256), zero(most) + most, dtype=torch.uint8)
    expected = (rounded.long() - zero(most)) @ weight.long().t()
    return torch.equal(multiply(rounded, matrix, most), expected.float())
