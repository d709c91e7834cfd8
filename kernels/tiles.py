"""Reading logits: float32 blocks of some tiles of some rows, one tile or one token per row.

Shapes: N rows, R rows and C tiles of a block, V vocabulary, K tiles, W tokens of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from struct import pack, unpack
from typing import Final, NamedTuple

import torch
from torch import Tensor

TILE: Final = 1024
"""Tokens per tile. Part of the noise contract: another size gives other samples of the same law."""

CPU_BLOCK = 1 << 17
"""Elements of a block's temporaries on the CPU: 0.5 MB of float32, which fits a cache."""
CUDA_BLOCK = 1 << 22
"""The same on other devices: 16 MB, as smaller kernels cost more to launch than to run."""
CPU_GRAIN: Final = 1 << 15
"""Elements below which torch gives no second thread a part of an operation."""
CPU_SHARE: Final = 32
"""A block larger than `CPU_BLOCK`, for many threads, is at most 1 / CPU_SHARE of the logits."""

# Replacements of -inf, all with exp(x - maximum) = 0. They are finite so that 0 * (x - maximum) is
# 0, and distinct so that a row without any finite logit is uniform over its unsuppressed tokens.
LOWEST: Final = -1e38
SUPPRESSED: Final = -2e38
PADDING: Final = -3e38

Temperature = float | Tensor
"""T of every row: one number, or float32 [N, 1]."""
TEMPERATURES: Final = (1e-30, 1e30)
"""Beyond these float32 logits are a one-hot or a uniform distribution, and 1 / T would overflow."""


def bounded(temperature: float) -> float:
    """The float32 nearest to a temperature above 0, within `TEMPERATURES`."""
    rounded: float
    (rounded,) = unpack("f", pack("f", min(max(temperature, TEMPERATURES[0]), TEMPERATURES[1])))
    return rounded


def over(temperature: Temperature, scale: Tensor | None) -> Temperature:
    """T / s of each row, from a number or float32 [N]."""
    if isinstance(temperature, Tensor):
        temperature = temperature.detach().clamp(*TEMPERATURES)
    else:
        temperature = bounded(temperature)
    if scale is not None:
        temperature = torch.as_tensor(temperature, dtype=torch.float32) / scale.detach()
        temperature.clamp_(*TEMPERATURES)
    return temperature[:, None] if isinstance(temperature, Tensor) else temperature


def rows_of(temperature: Temperature, rows: slice) -> Temperature:
    """T of some rows."""
    return temperature[rows] if isinstance(temperature, Tensor) else temperature


def row_blocks(num_rows: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Split rows of `elements` elements each, so that a block's temporaries fit the budget."""
    size = max(1, (CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK) // elements)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def tile_count(vocabulary: int) -> int:
    """K. A vocabulary smaller than a tile is one tile of its own width."""
    return -(-vocabulary // TILE)


class Bonus(NamedTuple):
    """What is added to the logits of a few tokens of every row, after conversion to float32."""

    tokens: Tensor  # int64 [N, J]
    values: Tensor  # float32 [N, J], 0 for an unused entry


@dataclass(frozen=True, slots=True, eq=False)
class Suppressed:
    """Tokens of probability 0, prepared once for all calls that suppress the same ones."""

    mask: Tensor  # bool [V], must not change any more
    ids: Tensor | None  # int64, the suppressed ids in ascending order; None unless on the CPU
    ends: list[int]  # how many of the ids come before each tile, and before the end

    @classmethod
    def of(cls, mask: Tensor) -> "Suppressed":
        """Prepare a mask of suppressed tokens, bool [V]."""
        # On the CPU filling a short list of ids is 50 times faster than a mask; a GPU would sync.
        if mask.device.type != "cpu":
            return cls(mask, None, [])
        ids = mask.nonzero()[:, 0]
        starts = torch.arange(tile_count(len(mask)) + 1) * TILE
        return cls(mask, ids, torch.searchsorted(ids, starts).tolist())


@dataclass(frozen=True)
class TiledLogits:
    """Logits as float32, with suppressed tokens and -inf replaced, without a copy of the whole."""

    logits: Tensor  # any floating dtype [N, V]
    suppressed: Suppressed | None
    bonus: Bonus | None = None

    @classmethod
    def of(
        cls, logits: Tensor, suppressed: Tensor | Suppressed | None, bonus: Bonus | None = None
    ) -> "TiledLogits":
        """Prepare logits [N, V] and the bool [V] of tokens with probability 0."""
        if isinstance(suppressed, Tensor):
            suppressed = Suppressed.of(suppressed)
        return cls(logits, suppressed, bonus)

    @cached_property
    def vocabulary(self) -> int:
        """V."""
        return self.logits.shape[1]

    @cached_property
    def width(self) -> int:
        """W: a vocabulary smaller than a tile is not padded."""
        return min(TILE, self.vocabulary)

    @cached_property
    def tiles(self) -> int:
        """K."""
        return tile_count(self.vocabulary)

    def blocks(self, temporaries: int, whole: bool) -> Iterator[tuple[slice, slice]]:
        """Rows and tiles of each block: several whole rows, or if rows may be cut a part of one.

        Args:
            temporaries: How many tensors of the size of a block are held at a time.
            whole: Whether a block contains all tiles of its rows, even beyond the budget.
        """
        num_rows, tiles = self.logits.shape[0], self.tiles
        budget = self._budget() // temporaries // self.width
        parts = 1 if whole else -(-tiles // max(1, budget))
        size = -(-tiles // parts)
        step = max(1, budget // tiles)
        for row in range(0, num_rows, step):
            for tile in range(0, tiles, size):
                yield slice(row, min(row + step, num_rows)), slice(tile, min(tile + size, tiles))

    def _budget(self) -> int:
        """Elements of a block's temporaries.

        On the CPU every thread gets its grain, but what exceeds `CPU_BLOCK` has to be a small part
        of the logits. Results do not depend on it.
        """
        if self.logits.device.type != "cpu":
            return CUDA_BLOCK
        busy = CPU_GRAIN * torch.get_num_threads()
        return max(CPU_BLOCK, min(busy, self.logits.numel() // CPU_SHARE))

    def read(self, rows: slice, tiles: slice, out: Tensor) -> None:
        """Write some tiles of some rows to `out`, float32 [R, C, W], the last tile padded."""
        start = tiles.start * self.width
        stop = min(tiles.stop * self.width, self.vocabulary)
        block = out.flatten(1)
        values = block[:, : stop - start]
        given = self.logits[rows, start:stop]
        if given.dtype == torch.float32:
            torch.clamp(given, min=LOWEST, out=values)
        else:
            values.copy_(given).clamp_(min=LOWEST)
        if self.bonus is not None:
            self._add_bonus(values, rows, start)
        if self.suppressed is not None:
            self._suppress(values, tiles, start)
        if stop < tiles.stop * self.width:
            block[:, stop - start :].fill_(PADDING)

    def tile(self, rows: slice, index: Tensor) -> tuple[Tensor, Tensor]:
        """One tile for each of some rows.

        Args:
            rows: Which rows, R of them.
            index: int64 [R], the tile of each.

        Returns:
            Values, float32 [R, W], and their token ids, int64 [R, W].
        """
        ids = index[:, None] * self.width + torch.arange(self.width, device=index.device)
        values = self._at(rows, ids.clamp(max=self.vocabulary - 1))
        return values.masked_fill_(ids >= self.vocabulary, PADDING), ids

    def token(self, tokens: Tensor) -> Tensor:
        """One token of every row; int64 [N] to float32 [N]."""
        return self._at(slice(None), tokens[:, None])[:, 0]

    def _at(self, rows: slice, ids: Tensor) -> Tensor:
        """Consecutive tokens of some rows; int64 [R, W] or [R, 1] to float32 of that shape."""
        values = self.logits[rows].gather(1, ids).float().clamp_(min=LOWEST)
        if self.bonus is not None:
            self._add_bonus(values, rows, ids[:, :1])
        if self.suppressed is not None:
            values.masked_fill_(self.suppressed.mask[ids], SUPPRESSED)
        return values

    def _suppress(self, values: Tensor, tiles: slice, start: int) -> None:
        """Replace suppressed tokens in `values` of some tiles, float32, that begin at `start`."""
        assert self.suppressed is not None
        mask, ids, ends = self.suppressed.mask, self.suppressed.ids, self.suppressed.ends
        if ids is None:
            values.masked_fill_(mask[start : start + values.shape[1]], SUPPRESSED)
        elif ends[tiles.stop] > ends[tiles.start]:
            some = ids[ends[tiles.start] : ends[tiles.stop]]
            values.index_fill_(1, some - start, SUPPRESSED)

    def _add_bonus(self, values: Tensor, rows: slice, start: Tensor | int) -> None:
        """Add the bonus to consecutive tokens of some rows, float32, that begin at `start`."""
        assert self.bonus is not None
        column = self.bonus.tokens[rows] - start
        here = (column >= 0) & (column < values.shape[1])
        extra = torch.where(here, self.bonus.values[rows], 0.0)
        values.scatter_add_(1, column.clamp_(0, values.shape[1] - 1), extra)
