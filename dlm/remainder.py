"""The columns of a span left to compute, where others keep their cached keys and values.

Shapes: B rows, S columns of a span, W window, R columns that are left, Q queries.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Remainder:
    """The remaining columns of each row's span, in order, padded with unused ones."""

    index: Tensor  # int64 [B, R]
    counts: Tensor  # bool [B, R], False for padding
    rank: Tensor  # int64 [B, S], index of each remaining column among them

    @classmethod
    def of(cls, inside: Tensor, settled: Tensor, offset: Tensor, most: int) -> Self:
        """All columns of a row, except those of its window that are settled.

        Args:
            inside: bool [B, S], columns that are to be computed at all.
            settled: bool [B, W], columns of the window to leave out.
            offset: int64 [B], where in the span the window begins.
            most: R, at least the most columns that any row has left.
        """
        column = torch.arange(inside.shape[1], device=inside.device) - offset[:, None]
        window = settled.shape[1]
        within = (column >= 0) & (column < window)
        left = inside & ~(within & settled.gather(1, column.clamp(0, window - 1)))
        index = (~left).long().argsort(stable=True)[:, :most]
        rank = (left.cumsum(-1) - 1).clamp(0, most - 1)
        return cls(index, left.gather(1, index), rank)

    def take(self, values: Tensor) -> Tensor:
        """Values [B, S] or, with guidance, [2 B, S] at the remaining columns."""
        halves = values.shape[0] // self.index.shape[0]
        return values.gather(1, self.index.repeat(halves, 1))

    def slots(self, slots: Tensor, room: int) -> Tensor:
        """Cache indices, [B, S] or [2 B, S] to [.., R]; padding maps to the cache's unread column.

        Args:
            slots: among all columns of the cache.
            room: its last column, which is never read.
        """
        taken = self.take(slots)
        rows = torch.arange(taken.shape[0], device=taken.device)[:, None]
        counts = self.counts.repeat(taken.shape[0] // self.counts.shape[0], 1)
        return taken.where(counts, rows * (room + 1) + room)

    def of_columns(self, columns: Tensor) -> Tensor:
        """Where columns of the span, int64 [B, N], are among the remaining ones."""
        return self.rank.gather(1, columns)


class Queries(NamedTuple):
    """The columns of a span, plus the one before it if that predicts its first token."""

    tokens: Tensor  # int64 [B, Q]
    places: Tensor  # int64 [B, Q], canvas positions
    given: Tensor  # bool [B, Q], masked in unconditional rows
    slots: Tensor  # int64 [B, Q], cache indices; [2 B, Q] with guidance
    inside: Tensor  # int64 [B], how many queries count
    left: Remainder | None  # which columns they are; None for all
