"""The operations of a transformer layer in plain torch: the reference of `fused_layers`.

Shapes: M tokens, K columns, N rows of the weights, F rows of a gate, P parts, D model width,
H query heads, G key heads, E head width, R rotated columns of it, B rows, Q queries, S keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """How a projection divides into heads."""

    queries: int  # H
    keys: int  # G
    width: int  # E


@dataclass(frozen=True, slots=True)
class Norms:
    """RMSNorm of each query and key head."""

    query: Tensor  # [E], weight
    key: Tensor  # [E]
    epsilon: float


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Where the keys and values of some tokens are stored."""

    keys: Tensor  # [..., G, E]
    values: Tensor  # [..., G, E]
    places: Tensor  # int64 [M], token index in both


def product(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """The product x W^T + b, W of stacked matrices, in parts to be added up, [P, M, N].

    Args:
        x: [M, K].
        weights: up to three, [N_i, K].
        biases: as many, [N_i], or all None.
    """
    return torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], 1)[None]


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x W^T) (x V^T) (SwiGLU, Shazeer 2020, arXiv:2002.05202), [M, F].

    Args:
        x: [M, K].
        gate: W, [F, K].
        up: V, [F, K].
    """
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def add_norm(x: Tensor, parts: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Residual and norm: h = x + sum of parts, and h / sqrt(mean h^2 + eps) w, [M, D] each.

    RMSNorm is from Zhang and Sennrich 2019, arXiv:1910.07467.

    Args:
        x: [M, D].
        parts: [P, M, D].
        weight: w, [D].
        epsilon: eps.
    """
    total = x + whole(parts, x.dtype)
    return total, F.rms_norm(total, weight.shape, weight, epsilon)


def rotate(
    parts: Tensor,
    heads: Heads,
    angles: tuple[Tensor, Tensor],
    norms: Norms | None,
    slots: Slots | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [M, H, E], keys and values [..., G, E] from projections, normalised and rotated.

    Queries and keys are rotated by their token's angle in the first R columns (rotary embedding, Su
    et al. 2021, arXiv:2104.09864, half-split), in the dtype of the angles.

    Args:
        parts: [P, M, (H + 2 G) E].
        heads: how the projections divide into heads.
        angles: cosine and sine, [A, R]; token n uses row n mod A.
        norms: of queries and keys, applied before the rotation.
        slots: where keys and values are stored; None returns new tensors.
        dtype: of the results.
    """
    split = (heads.queries, heads.keys, heads.keys)
    query, key, value = whole(parts, dtype).unflatten(-1, (-1, heads.width)).split(split, 1)
    if norms is not None:
        shape = norms.query.shape
        query = F.rms_norm(query, shape, norms.query, norms.epsilon)
        key = F.rms_norm(key, shape, norms.key, norms.epsilon)
    repeats = -(-parts.shape[1] // angles[0].shape[0])
    cosine, sine = (part.repeat(repeats, 1)[: parts.shape[1], None] for part in angles)
    query, key = turn(query, cosine, sine), turn(key, cosine, sine)
    if slots is None:
        return query, key, value
    for kept, new in ((slots.keys, key), (slots.values, value)):
        kept.view(-1, heads.keys, heads.width)[slots.places] = new
    return query, slots.keys, slots.values


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first R columns of [..., E] in the dtype of the angles; returns the dtype of `x`.

    Args:
        x: queries or keys.
        cosine: [..., R], at most as wide as `x`; the leading dimensions broadcast.
        sine: likewise.
    """
    width = cosine.shape[-1]
    turned = x[..., :width].to(cosine.dtype)
    first, second = turned.chunk(2, -1)
    turned = (turned * cosine + torch.cat((-second, first), -1) * sine).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), -1)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, seen: int, mask: Tensor | None, scaling: float
) -> Tensor:
    """softmax(scaling q k) v over the first `seen` keys of each row, [B, Q, H, E].

    Args:
        query: [B, Q, H, E].
        keys: [B, S or more, G, E], G a divisor of H.
        values: like `keys`.
        seen: S.
        mask: bool [B or 1, 1, Q or 1, S], whether a query attends to a key; None for all.
        scaling: usually 1 / sqrt(E).
    """
    key, value = (part[:, :seen].transpose(1, 2) for part in (keys, values))
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def whole(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of parts [P, ...] in float32, rounded to `dtype`."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    return parts.float().sum(0).to(dtype)
