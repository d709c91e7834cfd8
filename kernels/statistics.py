"""Confidence, margin, entropy and exact samples of many rows, in one read of the logits.

Shapes: N rows, V vocabulary, K tiles.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from dlm.kernels.checks import STATISTICS, check_sampling, check_tensors, check_wanted
from dlm.kernels.filters import Cut, filter_cut
from dlm.kernels.noise import NoiseKey
from dlm.kernels.race import race_tiles, race_tokens
from dlm.kernels.tiles import LOWEST, PADDING, TiledLogits, row_blocks

__all__ = ["STATISTICS", "TokenStatistics", "categorical", "token_statistics"]

_TEMPERATURES: Final = (1e-30, 1e30)
"""Beyond these float32 logits are a one-hot or a uniform distribution, and 1 / T would overflow."""


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """One sample a row and what the untempered, unfiltered model says about the row."""

    sampled: Tensor  # int64 [N]
    maximum: Tensor  # float32 [N], largest logit; not finite where the row is broken
    confidence: Tensor | None = None  # float32 [N], p(sampled)
    margin: Tensor | None = None  # float32 [N], largest minus second largest probability
    entropy: Tensor | None = None  # float32 [N], nats
    token_probability: Tensor | None = None  # float32 [N], p(tokens)
    token_log_probability: Tensor | None = None  # float32 [N], ln p(tokens), without underflow


def token_statistics(
    logits: Tensor,
    wanted: Collection[str],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    suppressed: Tensor | None = None,
    tokens: Tensor | None = None,
    key: NoiseKey | None = None,
) -> TokenStatistics:
    """Sample a token of each row and measure the row's distribution.

    With m = max l and Z = sum exp(l - m): confidence = exp(l_sampled - m) / Z, margin =
    (1 - exp(l_second - m)) / Z, entropy = ln Z - sum (l - m) exp(l - m) / Z. All are float32 from
    upcast logits; neither temperature nor filters change them.

    The sample follows softmax(l / T), restricted by top-k and then top-p. It is drawn by the
    exponential race of Gumbel-max in two heats, tiles and then tokens of the winning tile, with 64
    random bits a contestant and the fine end of the uniform where the race is won: float32 noise
    of 24 bits would drop tokens below e**-16.6 of the top (Zheng et al. 2024, arXiv:2409.02908).
    A row's sample depends on its own logits and key, not on the rest of the batch. T = 0 is the
    arg max, the lower id among equals, and takes no noise.

    -inf logits are never drawn while a row has another; a row of nothing else is uniform over its
    unsuppressed tokens. A NaN or +inf logit that is not suppressed makes the row's statistics NaN.

    Args:
        logits: Floating point [N, V], read only.
        wanted: Which statistics to compute, out of `STATISTICS`.
        temperature: T, at least 0.
        top_k: Keep the k likeliest tokens, the lower id among equals. None keeps all.
        top_p: Keep the fewest likeliest tokens with at least this share. None keeps all.
        suppressed: bool [V], tokens of probability 0. At least one must be left.
        tokens: int64 [N], for `token_probability` and `token_log_probability`.
        key: The noise of the rows; needed when T > 0.

    Returns:
        The sample and the wanted statistics; the others are None.

    Raises:
        ValueError: If an option, a name, a shape or a dtype breaks its rule.
    """
    check_sampling(temperature, top_k, top_p)
    check_wanted(wanted)
    check_tensors(logits, wanted, temperature, suppressed, tokens, key)
    if temperature > 0:
        temperature = min(max(temperature, _TEMPERATURES[0]), _TEMPERATURES[1])
    law = _Law(temperature, top_k, None if top_p == 1 else top_p)
    tiled = TiledLogits.of(logits.detach(), suppressed)
    scan = _scan(tiled, law, wanted)
    if key is None or temperature == 0:
        sampled = _arg_max(tiled, scan.tile_maximum)
    else:
        noise = key.stream()
        tile = race_tiles(scan.tile_mass, noise)
        sampled = race_tokens(tiled, tile, temperature, scan.cut, noise)
    return TokenStatistics(
        sampled,
        scan.tile_maximum.amax(1),
        confidence=scan.probability(tiled, sampled) if "confidence" in wanted else None,
        margin=_margin(tiled, scan) if "margin" in wanted else None,
        entropy=scan.entropy if "entropy" in wanted else None,
        token_probability=(
            scan.probability(tiled, tokens)
            if tokens is not None and "token_probability" in wanted
            else None
        ),
        token_log_probability=(
            scan.log_probability(tiled, tokens)
            if tokens is not None and "token_log_probability" in wanted
            else None
        ),
    )


def categorical(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    suppressed: Tensor | None = None,
    key: NoiseKey | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a token of each row; `token_statistics` says how.

    Returns:
        Tokens, int64 [N], and their probability under the untempered model, float32 [N].
    """
    drawn = token_statistics(
        logits,
        ("confidence",),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        suppressed=suppressed,
        key=key,
    )
    assert drawn.confidence is not None
    return drawn.sampled, drawn.confidence


@dataclass(frozen=True, slots=True)
class _Law:
    """What `sampled` follows."""

    temperature: float
    top_k: int | None
    top_p: float | None

    @property
    def filtered(self) -> bool:
        return self.temperature > 0 and (self.top_k is not None or self.top_p is not None)

    @property
    def untouched(self) -> bool:
        """Whether it is the model's own distribution, whose sums are needed anyway."""
        return self.temperature == 1 and not self.filtered


@dataclass(frozen=True, slots=True)
class _Scan:
    """What one read of the logits leaves of each row. Fields that no one asked for stay unset."""

    tile_maximum: Tensor  # float32 [N, K]
    tile_mass: Tensor  # float32 [N, K], sum of exp((l - m) / T) over the survivors of each tile
    partition: Tensor  # float32 [N], Z
    entropy: Tensor  # float32 [N], nats
    cut: Cut | None

    def probability(self, tiled: TiledLogits, tokens: Tensor) -> Tensor:
        """p(tokens), float32 [N]."""
        return (tiled.token(tokens) - self.tile_maximum.amax(1)).exp_().div_(self.partition)

    def log_probability(self, tiled: TiledLogits, tokens: Tensor) -> Tensor:
        """Return ln p(tokens), float32 [N]; -inf for tokens of probability 0."""
        value = tiled.token(tokens) - self.tile_maximum.amax(1) - self.partition.log()
        return value.masked_fill_(value < LOWEST / 2, -torch.inf)


def _scan(tiled: TiledLogits, law: _Law, wanted: Collection[str]) -> _Scan:
    """Read the logits once, in row blocks."""
    num_rows = tiled.logits.shape[0]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return tiled.logits.new_empty(shape, dtype=dtype)

    cut = Cut(empty(num_rows, 1), empty(num_rows, 1, dtype=torch.int32)) if law.filtered else None
    mass, maximum = empty(num_rows, tiled.tiles), empty(num_rows, tiled.tiles)
    scan = _Scan(maximum, mass, empty(num_rows), empty(num_rows), cut)
    scratch = tiled.scratch(), tiled.scratch()
    for rows in tiled.blocks():
        _scan_block(tiled, rows, law, wanted, scan, scratch)
    return scan


def _scan_block(
    tiled: TiledLogits,
    rows: slice,
    law: _Law,
    wanted: Collection[str],
    scan: _Scan,
    scratch: tuple[Tensor, Tensor],
) -> None:
    """Fill the rows of `scan`. Works in place: a block and its exponentials are all it holds."""
    shape = (-1, tiled.tiles, tiled.width)
    values = tiled.read(rows, scratch[0])
    dropped = None
    if scan.cut is not None:
        cut = filter_cut(values, law.temperature, law.top_k, law.top_p)
        scan.cut.value[rows], scan.cut.token[rows] = cut.value, cut.token
        ids = torch.arange(values.shape[1], dtype=torch.int32, device=values.device)
        dropped = cut.drops(values, ids)
        del ids
    scan.tile_maximum[rows] = values.view(shape).amax(2)
    values.sub_(scan.tile_maximum[rows].amax(1, keepdim=True))
    weights = scratch[1][: values.shape[0]]
    if law.temperature > 0 and not law.untouched:
        torch.div(values, law.temperature, out=weights).exp_()
        if dropped is not None:
            weights.masked_fill_(dropped, 0.0)
        scan.tile_mass[rows] = weights.view(shape).sum(2)
    if wanted or law.untouched:
        sums = torch.exp(values, out=weights).view(shape).sum(2)
        scan.partition[rows] = sums.sum(1)
        if law.untouched:
            scan.tile_mass[rows] = sums
    if "entropy" in wanted:
        moment = values.mul_(weights).view(shape).sum(2).sum(1)
        scan.entropy[rows] = scan.partition[rows].log() - moment / scan.partition[rows]


def _arg_max(tiled: TiledLogits, tile_maximum: Tensor) -> Tensor:
    """The likeliest token of each row, the lower id among equals; int64 [N]."""
    tile = tile_maximum.argmax(1)
    best = torch.empty_like(tile)
    for rows in row_blocks(tile.shape[0], 2 * tiled.width, tile.device):
        values, ids = tiled.tile(rows, tile[rows])
        best[rows] = ids.gather(1, values.argmax(1, keepdim=True))[:, 0]
    return best


def _margin(tiled: TiledLogits, scan: _Scan) -> Tensor:
    """Largest minus second largest probability; float32 [N]."""
    tile = scan.tile_maximum.argmax(1)
    maximum = scan.tile_maximum.amax(1)
    second = scan.tile_maximum.scatter(1, tile[:, None], PADDING).amax(1)
    if tiled.width > 1:
        for rows in row_blocks(tile.shape[0], 2 * tiled.width, tile.device):
            inside = tiled.tile(rows, tile[rows])[0].topk(2).values[:, 1]
            second[rows] = torch.maximum(second[rows], inside)
    return -torch.expm1(second - maximum).div_(scan.partition)
