"""The noise of `noise.py` and the race of `race.py` inside Triton kernels, with the same words.

Counters, keys and the 64-bit words are equal bit for bit. The exponential variates equal those of
`exponential_from_bits` up to the last bit or two of a float32 logarithm.

Shapes: C contestants, an even number.
"""

from typing import Final

import triton
import triton.language as tl

from dlm.kernels.noise import _MULTIPLIERS, _ROUNDS, _ROW_TAG, _WEYL

MULTIPLIER_0: Final = tl.constexpr(_MULTIPLIERS[0])
MULTIPLIER_1: Final = tl.constexpr(_MULTIPLIERS[1])
WEYL_0: Final = tl.constexpr(_WEYL[0])
WEYL_1: Final = tl.constexpr(_WEYL[1])
ROUNDS: Final = tl.constexpr(_ROUNDS)
ROW_TAG: Final = tl.constexpr(_ROW_TAG)
UNIT: Final = tl.constexpr(2.0**-64)
KEY_OF_NAN: Final = tl.constexpr(0x7FFFFFFF)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 of uint32 counters and keys that broadcast; four uint32 words."""
    for _ in tl.static_range(ROUNDS):
        p0 = c0.to(tl.uint64) * MULTIPLIER_0
        p1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = k0 + WEYL_0
        k1 = k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def row_key(seed, row):  # type: ignore[no-untyped-def]
    """The Philox key of a row, derived as in `NoiseKey.stream`.

    Args:
        seed: int64.
        row: int64, which request this is.
    """
    none = tl.full((), 0, tl.uint32)
    tag = tl.full((), ROW_TAG, tl.uint32)
    low, high = row.to(tl.uint32), (row >> 32).to(tl.uint32)
    seed_low, seed_high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    k0, k1, _, _ = philox(low, high, tag, none, seed_low, seed_high)
    return k0, k1


@triton.jit  # type: ignore[untyped-decorator]
def words(purpose: tl.constexpr, index, position, draw, k0, k1):  # type: ignore[no-untyped-def]
    """High and low halves of the words of counters (index, position, draw, purpose).

    Args:
        purpose: `TILE_RACE` or `TOKEN_RACE` of `noise.py`.
        index: int32 [C / 2].
        position: int64, of which the low 32 bits are used.
        draw: Likewise.
        k0: uint32, first word of the key.
        k1: uint32, second word.

    Returns:
        uint32 [C] twice; items 2i and 2i + 1 share a counter.
    """
    tag = tl.full((), purpose, tl.uint32)
    at, number = position.to(tl.uint32), draw.to(tl.uint32)
    x0, x1, x2, x3 = philox(index.to(tl.uint32), at, number, tag, k0, k1)
    return tl.interleave(x0, x2), tl.interleave(x1, x3)


@triton.jit
def exponential(high, low):  # type: ignore[no-untyped-def]
    """`exponential_from_bits` of uint32 halves; float32 of their shape.

    Triton has no log1p, so with w = 1 - d: -ln(1 - d) = -ln(w) d / (1 - w), where the rounding of w
    cancels (Kahan's trick, in Goldberg 1991, "What every computer scientist should know about
    floating-point arithmetic", theorem 4). 1 - w is exact, as w >= 1/2.
    """
    bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)).to(tl.int64, bitcast=True)
    upper = bits < 0
    distance = ((bits ^ (bits >> 63)).to(tl.float32) + 0.5) * UNIT
    rest = 1.0 - distance
    tiny = rest == 1.0
    log1p = tl.log(rest) * tl.math.div_rn(distance, tl.where(tiny, 1.0, 1.0 - rest))
    return -tl.where(upper, tl.log(distance), tl.where(tiny, -distance, log1p))


@triton.jit
def ordered(values):  # type: ignore[no-untyped-def]
    """int32 keys in the order of float32 values, with -0 equal to 0 and every NaN on top.

    `tl.max` may or may not ignore a NaN, depending on the hardware; integers have only one order.
    """
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(values == values, bits ^ ((bits >> 31) & 0x7FFFFFFF), KEY_OF_NAN)


@triton.jit
def value_of(key):  # type: ignore[no-untyped-def]
    """The float32 with this key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def first_best(values):  # type: ignore[no-untyped-def]
    """Largest of float32 [C] and its index, the lower one among equals; NaN is the largest."""
    key, index = tl.max(ordered(values), 0, return_indices=True, return_indices_tie_break_left=True)
    return value_of(key), index


@triton.jit
def race(mass, high, low):  # type: ignore[no-untyped-def]
    """Draw an index with probability proportional to `mass`, as in `race.py`.

    Args:
        mass: float32 [C], non-negative, or below 0 for contestants that do not exist.
        high: uint32 [C], high halves of 64 random bits each.
        low: uint32 [C], low halves.

    Returns:
        int32.
    """
    _, winner = first_best(tl.math.div_rn(mass, exponential(high, low)))
    return winner
