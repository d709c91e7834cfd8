"""Counter-based noise: a draw depends only on (seed, row key, position, draw).

Shapes: N rows, C counters of a row.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Final

import torch
from torch import Tensor

TILE_RACE: Final = 0
"""Purpose of the noise that picks a tile of the vocabulary."""
TOKEN_RACE: Final = 1
"""Purpose of the noise that picks a token of the chosen tile."""
POSITION_NOISE: Final = 2
"""Purpose of the noise that ranks positions, not tokens."""

_WORD: Final = 0xFFFFFFFF
_ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROW_TAG: Final = 0x646C6D31  # separates row keys from any other use of the same seed
_BELOW_ONE: Final = 1.0 - 2.0**-24

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10, four pseudo-random words for each counter and key.

    Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC11). The
    low 64 bits of a product are the same for signed and unsigned integers, so int64 arithmetic is
    exact.

    Args:
        counter: Four int64 tensors that broadcast, holding unsigned 32-bit words.
        key: Two int64 tensors that broadcast with them, likewise.

    Returns:
        Four int64 tensors of the broadcast shape, each value in [0, 2**32).
    """
    c0, c1, c2, c3, *_ = torch.broadcast_tensors(*counter, *key)
    k0, k1 = key
    # Sums and products keep bits above the 32 of a word; a mask after the last xor drops them. The
    # results of a round are changed in place, as the cost of small operations is their launch.
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_WORD)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_WORD)
        c1, c3 = p1, p0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)


@dataclass(frozen=True, slots=True)
class NoiseStream:
    """The noise of N rows after their Philox keys are derived. Slicing selects rows."""

    key: tuple[Tensor, Tensor]  # int64 [N, 1], words
    position: Tensor  # int64 [N, 1], words
    draw: Tensor  # int64 [N, 1], words

    def __getitem__(self, rows: slice) -> "NoiseStream":
        key = (self.key[0][rows], self.key[1][rows])
        return NoiseStream(key, self.position[rows], self.draw[rows])

    def words(self, purpose: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Two 64-bit words for each counter (index, position, draw, purpose).

        Args:
            purpose: `TILE_RACE`, `TOKEN_RACE` or `POSITION_NOISE`.
            index: int64 [1, C] or [N, C]; items 2i and 2i + 1 of the result share counter index i.

        Returns:
            High and low halves, int64 [N, 2C].
        """
        tag = torch.full_like(self.position, purpose)
        x0, x1, x2, x3 = philox4x32((index, self.position, self.draw, tag), self.key)
        return torch.stack((x0, x2), -1).flatten(-2), torch.stack((x1, x3), -1).flatten(-2)


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What the noise of N rows depends on.

    The key of a row is the first two words of Philox((row_low, row_high, tag, 0), seed), so any two
    (seed, row) pairs have unrelated streams. Positions and draws count modulo 2**32.

    Raises:
        ValueError: If the seed is not an integer in [-2**63, 2**64), or a tensor is not int64 [N].
    """

    seed: int | Tensor  # of all rows, or int64 [N] with the same 64 bits
    row: Tensor  # int64 [N], any 64 bits that identify the request
    position: Tensor  # int64 [N], canvas index
    draw: Tensor  # int64 [N], number of the forward pass

    def __post_init__(self) -> None:
        seed, names = self.seed, ["seed", "row", "position", "draw"]
        if not isinstance(seed, Tensor):
            names.remove("seed")
            whole = isinstance(seed, Integral) and not isinstance(seed, bool)
            if not whole or not -(2**63) <= seed < 2**64:
                raise ValueError(f"seed must be an integer in [-2**63, 2**64), got {seed!r}")
        for name in names:
            value: Tensor = getattr(self, name)
            if value.dtype != torch.int64 or value.shape != (len(self),):
                found = f"{value.dtype} {list(value.shape)}"
                raise ValueError(f"{name} must be int64 of shape [{len(self)}], got {found}")

    def __len__(self) -> int:
        return self.row.shape[0] if self.row.dim() else 0

    @property
    def seeds(self) -> Tensor:
        """The seed of every row, int64 [N]."""
        if isinstance(self.seed, Tensor):
            return self.seed
        return torch.full_like(self.row, signed(self.seed))

    def stream(self) -> NoiseStream:
        """Derive the Philox key of every row."""
        row = self.row[:, None]
        none = torch.zeros_like(row)
        counter = (row & _WORD, (row >> 32) & _WORD, torch.full_like(row, _ROW_TAG), none)
        seed = self.seeds[:, None]
        first, second, _, _ = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))
        return NoiseStream(
            (first, second), self.position[:, None] & _WORD, self.draw[:, None] & _WORD
        )


def signed(bits: int) -> int:
    """The int64 with the 64 bits of an integer in [-2**63, 2**64)."""
    bits = int(bits)  # a numpy integer has only 64 bits, and would overflow below
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _near_end(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of the uniform (k + 1/2) 2**-64 to the nearer end of (0, 1), and which end.

    Either half of the 64-bit range fits a positive int64, which converts to float32 with
    round-to-nearest: distances keep 24 significant bits down to 2**-65.
    """
    bits = (high << 32).bitwise_or_(low)
    upper = bits < 0
    return bits.bitwise_xor_(bits >> 63).float().add_(0.5).mul_(2.0**-64), upper


def exponential_from_bits(high: Tensor, low: Tensor) -> Tensor:
    """Standard exponential variates from 64 random bits, fine near 0, where races are won.

    E = -ln(1 - u), u = (k + 1/2) 2**-64, k = high 2**32 + low. Small u go through log1p and large
    u through the logarithm of the exact complement, so both tails reach 2**-65 and E is never
    infinite. An infinite E of the likeliest token, at probability 2**-25, would give that much
    mass to the tail.

    Args:
        high: int64 of any shape, words in [0, 2**32).
        low: Likewise.

    Returns:
        float32 of the same shape, in [2**-65, 45.1], increasing with k.
    """
    distance, upper = _near_end(high, low)
    return torch.where(upper, distance.log(), distance.neg().log1p_()).neg_()


def uniform(key: NoiseKey) -> Tensor:
    """One U(0, 1) variate per row, for ranking positions; float32 [N], never 0 or 1."""
    high, low = _position_word(key, 0)
    distance, upper = _near_end(high, low)
    return torch.where(upper, (1.0 - distance).clamp_(max=_BELOW_ONE), distance)


def gumbel(key: NoiseKey) -> Tensor:
    """One standard Gumbel variate per row, for ranking positions; float32 [N], in [-3.81, 45.1].

    G = -ln E with the E of `exponential_from_bits`, whose tails are fine at both ends. It uses the
    second word of the counter whose first word `uniform` uses, so `uniform` and `gumbel` of one key
    are independent.
    """
    return exponential_from_bits(*_position_word(key, 1)).log_().neg_()


def gumbels(key: NoiseKey, count: int) -> Tensor:
    """Several standard Gumbel variates per row, for ranking positions; float32 [N, `count`].

    Like `gumbel`, but from the counters after the one that `gumbel` and `uniform` use, so they are
    independent of both.
    """
    index = torch.arange(1, count // 2 + count % 2 + 1, device=key.row.device)[None]
    high, low = key.stream().words(POSITION_NOISE, index)
    return exponential_from_bits(high[:, :count], low[:, :count]).log_().neg_()


def _position_word(key: NoiseKey, item: int) -> tuple[Tensor, Tensor]:
    """Word `item`, 0 or 1, of the counter (0, position, draw, POSITION_NOISE); int64 [N]."""
    high, low = key.stream().words(POSITION_NOISE, torch.zeros_like(key.row)[:, None])
    return high[:, item], low[:, item]
