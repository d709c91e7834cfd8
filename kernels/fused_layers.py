"""Layer operations by Triton kernels: the functions of `layers`, and when they apply.

On an H200 a step of an 8B network with a window of 32 tokens takes 950 torch operations, and half
of its time is not spent reading weights. These kernels take nine of the 30 launches of a layer:

    product -> rotate -> attend (two) -> product -> add_norm -> gated -> product -> add_norm

`covers` says when they apply. `product` and `gated` are for few tokens; torch computes them for
more. Sums are added in another order than in torch; everything else is rounded alike.

Shapes: as in `layers`.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels.capability import capability
from dlm.kernels.layers import Heads, Norms, Slots

ON_CPU = False
"""Whether CPU tensors use the kernels. For tests under Triton's interpreter."""
FEW: Final = 128
"""Most tokens for which `product` and `gated` are no slower than torch."""
WINDOW: Final = 64
"""Most queries per row for `attend`."""
ROWS: Final = 64
"""Fewest matrix rows that a program computes; it must divide the rows of every matrix."""
MANY: Final = 64
"""Tokens beyond which a program reads more of them than of 64 rows: it then takes 128 rows."""
BLOCK: Final = 64
"""Columns processed at a time; it must divide the columns of every matrix."""
ENOUGH: Final = 128
"""Programs that keep all processors of a Hopper GPU (132) busy reading."""
AT_ONCE: Final = 256
"""Programs of `attend` that run at the same time: the memory of a processor suffices for two."""
SCRATCH: Final = 1 << 28
"""Most bytes for the parts of `attend` at a time."""

_PLAIN: Final = (torch.nn.Parameter, Tensor)
_HALF: Final = (torch.bfloat16, torch.float16)
_MAJOR: Final = 9  # compute capability; the kernels were never measured on another


def covers(x: Tensor) -> bool:
    """Whether the kernels apply to activations of this dtype and device."""
    if x.dtype not in _HALF:
        return False
    if x.device.type == "cpu":
        return ON_CPU
    return x.is_cuda and _runs_on(x.device.index)


def fits(heads: Heads, rotated: int, dtype: torch.dtype, *weights: Tensor) -> bool:
    """Whether the kernels can use these heads and matrices with activations of a dtype."""
    if not 16 <= heads.width <= 128 or heads.width.bit_count() != 1 or rotated % 2:
        return False
    for weight in weights:
        rows, columns = weight.shape
        # A quantised or sharded matrix may be a Tensor subclass that looks like a plain one.
        plain = type(weight) in _PLAIN and weight.dtype == dtype and weight.is_contiguous()
        if rows % ROWS or columns % BLOCK or not plain:
            return False
    return True


def _runs_on(index: int) -> bool:
    """Whether a CUDA device can run the kernels."""
    found = capability(index)
    return found is not None and found[0] == _MAJOR


def product(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """`layers.product`. If there are several parts, they are float32."""
    tokens, columns = x.shape
    rows = sum(len(weight) for weight in weights)
    if tokens > FEW:
        return _by_torch(x, weights, biases, rows)
    from dlm.kernels.triton_layers import product_kernel

    parts, room = split(rows, columns), power(tokens)
    some, stages = (ROWS, 8) if parts > 1 else tile(room, weights, (6, 4, 6))
    out = x.new_empty((parts, tokens, rows), dtype=x.dtype if parts == 1 else torch.float32)
    matrices, added = [*weights, *weights, *weights][:3], [*biases, *biases, *biases][:3]
    second = len(weights[1]) if len(weights) > 1 else 0
    with torch.cuda.device_of(x):
        product_kernel[(rows // some, parts)](
            *(x, *matrices, *added, len(weights[0]), second, out, tokens, rows),
            COLUMNS=columns,
            TOKENS=room,
            ROWS=some,
            BLOCK=BLOCK,
            PARTS=parts,
            STAGES=stages,
            num_warps=some // 16,
        )
    return out


def _by_torch(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int
) -> Tensor:
    """The same product in one part, each matrix written directly to its place."""
    out = x.new_empty((1, len(x), rows))
    spans = out[0].split([len(weight) for weight in weights], 1)
    for span, weight, bias in zip(spans, weights, biases, strict=True):
        if bias is None:
            torch.mm(x, weight.t(), out=span)
        else:
            torch.addmm(bias, x, weight.t(), out=span)
    return out


def split(rows: int, columns: int, block: int = BLOCK) -> int:
    """Number of parts of a product [M, K] [N, K]^T, independent of M.

    Args:
        rows: N.
        columns: K.
        block: columns processed at a time.
    """
    parts = 1
    while rows // ROWS * parts < ENOUGH and parts < 4 and columns % (2 * parts * block) == 0:
        parts *= 2
    return parts


def tile(room: int, weights: Sequence[Tensor], stages: tuple[int, int, int]) -> tuple[int, int]:
    """Rows per program for matrices that are not split, and blocks in flight.

    Args:
        room: number of tokens, rounded up.
        weights: the matrices.
        stages: blocks in flight for few tokens; for many with 64 rows; for many with 128 rows.
    """
    if room <= MANY:
        return ROWS, stages[0]
    if any(len(weight) % (2 * ROWS) for weight in weights):
        return ROWS, stages[1]
    return 2 * ROWS, stages[2]


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """`layers.gated`."""
    tokens, columns = x.shape
    if tokens > FEW:
        opened = torch.nn.functional.linear(x, gate)
        return torch.nn.functional.silu(opened).mul_(torch.nn.functional.linear(x, up))
    from dlm.kernels.triton_layers import gated_kernel

    out, room = x.new_empty((tokens, len(gate))), power(tokens)
    some, stages = tile(room, [gate], (4, 3, 4))
    with torch.cuda.device_of(x):
        gated_kernel[(len(gate) // some,)](
            *(x, gate, up, out, tokens, len(gate)),
            COLUMNS=columns,
            TOKENS=room,
            ROWS=some,
            BLOCK=BLOCK,
            STAGES=stages,
            num_warps=some // 16,
        )
    return out


def add_norm(x: Tensor, parts: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`layers.add_norm`."""
    from dlm.kernels.triton_layers import add_norm_kernel

    total, normed = torch.empty_like(x), torch.empty_like(x)
    tokens, width = x.shape
    with torch.cuda.device_of(x):
        add_norm_kernel[(tokens,)](
            *(x, parts, weight, total, normed, epsilon, tokens),
            WIDTH=width,
            ROOM=1 << (width - 1).bit_length(),
            PARTS=len(parts),
            num_warps=16,
        )
    return total, normed


def rotate(
    parts: Tensor,
    heads: Heads,
    angles: tuple[Tensor, Tensor],
    norms: Norms | None,
    slots: Slots | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """`layers.rotate`."""
    from dlm.kernels.triton_layers import rotate_kernel

    tokens, some = parts.shape[1], 8
    query = parts.new_empty((tokens, heads.queries, heads.width), dtype=dtype)
    if slots is None:
        shape = (tokens, heads.keys, heads.width)
        keys, values = (query.new_empty(shape) for _ in range(2))
    else:
        keys, values = slots.keys, slots.values
    cosine, sine = angles
    every = heads.queries + 2 * heads.keys
    with torch.cuda.device_of(parts):
        rotate_kernel[(tokens, -(-every // some))](
            *(parts, cosine, sine),
            *((None, None, 0.0) if norms is None else (norms.query, norms.key, norms.epsilon)),
            *(None if slots is None else slots.places, query, keys, values),
            *(tokens, len(cosine)),
            HEADS=heads.queries,
            GROUPS=heads.keys,
            WIDTH=heads.width,
            ROTATED=cosine.shape[1],
            PARTS=len(parts),
            SOME=some,
            num_warps=4,
            enable_fp_fusion=False,  # a product is rounded before it is added, as torch does
        )
    return query, keys, values


def attend(
    query: Tensor, keys: Tensor, values: Tensor, seen: int, mask: Tensor | None, scaling: float
) -> Tensor:
    """`layers.attend`, for at most `WINDOW` queries."""
    from dlm.kernels.triton_attention import parts_of

    batch, queries, heads, width = query.shape
    each = heads * queries * width * parts_of(seen) * 4  # bytes for the parts of one row
    rows = max(1, SCRATCH // each)
    out = torch.empty_like(query)
    for begin in range(0, batch, rows):
        some = slice(begin, begin + rows)
        shown = mask if mask is None or len(mask) == 1 else mask[some]
        _attend(query[some], keys[some], values[some], seen, shown, scaling, out[some])
    return out


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: int,
    mask: Tensor | None,
    scaling: float,
    out: Tensor,
) -> None:
    """`attend` for rows whose parts fit into memory together, written to `out`."""
    from dlm.kernels.triton_attention import attend_kernel, combine_kernel, parts_of

    batch, queries, heads, width = query.shape
    parts, room = parts_of(seen), keys.stride(0) // keys.stride(1)
    sums = query.new_empty((parts, batch * heads, queries, 2), dtype=torch.float32)
    weighed = query.new_empty((parts, batch * heads, queries, width), dtype=torch.float32)
    shown: tuple[Any, ...] = (None, 0, 0)
    if mask is not None:
        assert mask.dtype == torch.bool
        assert mask.shape[3] == seen
        flags = mask.contiguous().view(torch.uint8)
        shown = flags, *(0 if flags.shape[i] == 1 else flags.stride(i) for i in (0, 2))
    with torch.cuda.device_of(query):
        attend_kernel[(batch * heads, parts)](
            *(query, keys, values, *shown, scaling, sums, weighed, queries, seen, room),
            HEADS=heads,
            GROUPS=keys.shape[2],
            WIDTH=width,
            QUERIES=power(queries),
            SKIP=mask is not None and batch * heads * parts > AT_ONCE,
            num_warps=4,
        )
        combine_kernel[(batch * heads, queries)](
            *(sums, weighed, out, queries, parts, batch * heads),
            HEADS=heads,
            WIDTH=width,
            SOME=4,
            num_warps=1,
        )


def power(count: int) -> int:
    """The smallest power of 2 that is at least 16 and at least the count."""
    return max(16, 1 << (count - 1).bit_length())
