"""Reading logits: float32 blocks of whole rows, one tile a row, or one token a row.

Shapes: N rows, R rows of a block, V vocabulary, K tiles, W tokens of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

TILE: Final = 1024
"""Tokens of a tile. Part of the noise contract: another size draws other samples of one law."""

CPU_BLOCK = 1 << 17
"""Elements of a temporary on the CPU: 0.5 MB of float32, which stays in the cache."""
CUDA_BLOCK = 1 << 22
"""Elements of a temporary elsewhere: 16 MB, as smaller kernels cost more to launch than to run."""

# Stand-ins for -inf, all with exp(x - maximum) = 0. They are finite so that 0 * (x - maximum) is 0,
# and apart so that a row without any finite logit is uniform over its unsuppressed tokens.
LOWEST: Final = -1e38
SUPPRESSED: Final = -2e38
PADDING: Final = -3e38

Temperature = float | Tensor
"""T of every row: one number, or float32 [N, 1]."""


def rows_of(temperature: Temperature, rows: slice) -> Temperature:
    """T of some rows."""
    return temperature[rows] if isinstance(temperature, Tensor) else temperature


def row_blocks(num_rows: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Split rows of `elements` elements each, so that a temporary of a block meets the budget."""
    budget = CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK
    size = max(1, budget // elements)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


class Bonus(NamedTuple):
    """What is added to the logits of a few tokens of every row, after they are float32."""

    tokens: Tensor  # int64 [N, J]
    values: Tensor  # float32 [N, J], 0 for an entry that means nothing


@dataclass(frozen=True, slots=True)
class TiledLogits:
    """Logits as float32 with suppressed tokens and -inf replaced, without a copy of the whole."""

    logits: Tensor  # float of any kind [N, V]
    suppressed: Tensor | None  # bool [V]
    suppressed_ids: Tensor | None  # int64, the same on the CPU; elsewhere None
    bonus: "Bonus | None" = None

    @classmethod
    def of(
        cls, logits: Tensor, suppressed: Tensor | None, bonus: "Bonus | None" = None
    ) -> "TiledLogits":
        """Prepare logits [N, V] and the bool [V] of tokens that have probability 0."""
        # A list of few ids fills 50 times faster than a mask on the CPU; on a GPU it would sync.
        if suppressed is None or logits.device.type != "cpu":
            return cls(logits, suppressed, None, bonus)
        return cls(logits, suppressed, suppressed.nonzero()[:, 0], bonus)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.logits.shape[1]

    @property
    def width(self) -> int:
        """W: a vocabulary below one tile is not padded."""
        return min(TILE, self.vocabulary)

    @property
    def tiles(self) -> int:
        """K."""
        return -(-self.vocabulary // self.width)

    def blocks(self) -> Iterator[slice]:
        """Row blocks for temporaries as wide as the vocabulary."""
        return row_blocks(self.logits.shape[0], self.tiles * self.width, self.logits.device)

    def scratch(self) -> Tensor:
        """An uninitialised float32 [R, K W] for the largest block."""
        rows = next((block.stop for block in self.blocks()), 0)
        return self.logits.new_empty((rows, self.tiles * self.width), dtype=torch.float32)

    def read(self, rows: slice, scratch: Tensor) -> Tensor:
        """Fill `scratch` with some rows, the last tile padded; float32 [R, K W]."""
        block = scratch[: rows.stop - rows.start]
        values = block[:, : self.vocabulary].copy_(self.logits[rows]).clamp_(min=LOWEST)
        if self.bonus is not None:
            values.scatter_add_(1, self.bonus.tokens[rows], self.bonus.values[rows])
        if self.suppressed_ids is not None:
            values.index_fill_(1, self.suppressed_ids, SUPPRESSED)
        elif self.suppressed is not None:
            values.masked_fill_(self.suppressed, SUPPRESSED)
        block[:, self.vocabulary :] = PADDING
        return block

    def tile(self, rows: slice, index: Tensor) -> tuple[Tensor, Tensor]:
        """One tile of each of some rows.

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
        """Consecutive tokens of some rows; int64 [R, C] to float32 of that shape."""
        values = self.logits[rows].gather(1, ids).float().clamp_(min=LOWEST)
        if self.bonus is not None:
            column = self.bonus.tokens[rows] - ids[:, :1]
            here = (column >= 0) & (column < ids.shape[1])
            extra = self.bonus.values[rows] * here
            values.scatter_add_(1, column.clamp(0, ids.shape[1] - 1), extra)
        if self.suppressed is not None:
            values.masked_fill_(self.suppressed[ids], SUPPRESSED)
        return values
