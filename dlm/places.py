"""The columns of a window that are measured.

Shapes: B rows, L canvas, W window, N columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Columns of the window: a list of them, or all."""

    listed: tuple[Tensor, Tensor] | None  # row and column, int64 [N]; None for all
    position: Tensor  # int64 [N], canvas position
    ignored: Tensor | None  # bool [B, W], columns that do not count; None for a list

    @classmethod
    def where(cls, wanted: Tensor, positions: Tensor) -> "Places":
        """The columns marked in bool [B, W]. On a GPU the host waits to learn their number."""
        row, column = wanted.nonzero(as_tuple=True)
        return cls((row, column), positions[row, column], None)

    @classmethod
    def all(cls, wanted: Tensor, positions: Tensor) -> "Places":
        """Every column; only those marked in bool [B, W] count."""
        return cls(None, positions.flatten(), ~wanted)

    @property
    def row(self) -> Tensor:
        """The row of each, int64 [N]."""
        if self.listed is not None:
            return self.listed[0]
        assert self.ignored is not None
        batch, window = self.ignored.shape
        return torch.arange(batch, device=self.position.device).repeat_interleave(window)

    def take(self, values: Tensor) -> Tensor:
        """Values [B, W, ...] at these places, [N, ...]."""
        return values.flatten(0, 1) if self.listed is None else values[self.listed]

    def of(self, values: Tensor, by_column: bool) -> Tensor:
        """Values [B, W or L, ...], by column of the window or by position, as [N, ...]."""
        return self.take(values) if by_column else values[self.row, self.position]

    def spread(self, values: Tensor | None, like: Tensor) -> Tensor | None:
        """Scatter values [N, ...] to a window of zeros shaped `like` [B, W]."""
        if values is None:
            return None
        if self.listed is not None:
            blank = values.new_zeros((*like.shape, *values.shape[1:]))
            return blank.index_put_(self.listed, values)
        assert self.ignored is not None
        over = values.view(*like.shape, *values.shape[1:])
        return over.masked_fill(self.ignored.view(*like.shape, *[1] * (values.dim() - 1)), 0)

    def every(self, flags: Tensor) -> Tensor:
        """Whether every column that counts is flagged, from bool [N]."""
        return (flags if self.ignored is None else flags | self.ignored.flatten()).all()
