"""Products of 8-bit integers by Triton kernels: `int8` on a GPU, and for `fused_layers`.

The sums of a token are exact, so they have the same bits for every number of tokens. A product
may be split into parts. For few tokens the next operation adds the parts; for many the kernel
adds them.

Shapes: M tokens, K columns, N rows of the weights, P parts, F rows of a gate.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from dlm.kernels.fused_layers import FEW, MANY, ROWS, power, split, tile
from dlm.kernels.int8 import LEAST, WEIGHTS, WIDEST, Matrix, check_gradient

BLOCK: Final = 128
"""Columns processed at a time, or half of it; that half must divide the columns of every matrix."""
_PLAIN: Final = (torch.nn.Parameter, Tensor)


def fits(*weights: Tensor | None) -> bool:
    """Whether the kernels can use these integer matrices; None is a matrix packed for a CPU."""
    for weight in weights:
        if weight is None:
            return False
        rows, columns = weight.shape
        plain = type(weight) in _PLAIN and weight.dtype == torch.int8 and weight.is_contiguous()
        if not plain or rows % ROWS or columns % (BLOCK // 2) or columns > WIDEST:
            return False
    return True


def tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise tokens [M, K]: integers u, int8 [M, K], and scales s, float32 [M].

    Raises:
        ValueError: A gradient is required: rounding has none.
    """
    from dlm.kernels.triton_int8 import round_kernel

    check_gradient(x)
    x, (count, columns) = x.contiguous(), x.shape
    room = 1 << (columns - 1).bit_length()
    rounded = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(count, dtype=torch.float32)
    with torch.cuda.device_of(x):
        round_kernel[(count,)](
            *(x, rounded, scale, LEAST),
            COLUMNS=columns,
            ROOM=room,
            STEPS=WEIGHTS,
            num_warps=min(8, max(1, room // 512)),
            enable_fp_fusion=False,
        )
    return rounded, scale


def product(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """`layers.product` of tokens [M, K] and up to three matrices, [P, M, N].

    If there are several parts, which is only for few tokens, they are float32. Either all matrices
    have a bias or none has.
    """
    from dlm.kernels.triton_int8 import int8_product_kernel

    rounded, own = tokens(x)
    (count, columns), rows = x.shape, sum(len(each.weight) for each in matrices)
    assert len({each.bias is None for each in matrices}) == 1
    block = block_of(columns)
    parts = split(rows, columns, block)
    turns = parts if count > FEW else 1  # parts that a program computes one after the other
    # With four parts per program the registers suffice for at most `MANY` tokens.
    room, weights = min(MANY if turns > 2 else FEW, power(count)), [m.weight for m in matrices]
    some, stages = (ROWS, 6) if parts > turns else tile(room, weights, (6, 4, 4))
    dtype = x.dtype if parts == turns else torch.float32
    out = x.new_empty((parts // turns, count, rows), dtype=dtype)
    three = [*matrices, *matrices, *matrices][:3]
    second = len(matrices[1].weight) if len(matrices) > 1 else 0
    with torch.cuda.device_of(x):
        int8_product_kernel[(-(-count // room), rows // some, parts // turns)](
            *(rounded, own),
            *(m.weight for m in three),
            *(m.scale for m in three),
            *(m.bias for m in three),
            *(len(matrices[0].weight), second, out, count, rows),
            COLUMNS=columns,
            TOKENS=room,
            ROWS=some,
            BLOCK=block,
            PARTS=parts,
            EACH=turns,
            STAGES=stages,
            num_warps=some // 16,
            enable_fp_fusion=False,
        )
    return out


def gated(x: Tensor, gate: Matrix, up: Matrix) -> Tensor:
    """`layers.gated` of tokens [M, K] and matrices without biases, [M, F]."""
    from dlm.kernels.triton_int8 import int8_gated_kernel

    rounded, own = tokens(x)
    (count, columns), rows = x.shape, len(gate.weight)
    assert gate.weight.shape == up.weight.shape == (rows, columns)
    out = x.new_empty((count, rows))
    room = min(FEW, power(count))
    some, stages = tile(room, [gate.weight], (4, 3, 3))
    with torch.cuda.device_of(x):
        int8_gated_kernel[(-(-count // room), rows // some)](
            *(rounded, own, gate.weight, up.weight, gate.scale, up.scale, out, count, rows),
            COLUMNS=columns,
            TOKENS=room,
            ROWS=some,
            BLOCK=block_of(columns),
            STAGES=stages,
            num_warps=some // 16,
            enable_fp_fusion=False,
        )
    return out


def block_of(columns: int) -> int:
    """Columns processed at a time."""
    return BLOCK if columns % BLOCK == 0 else BLOCK // 2
