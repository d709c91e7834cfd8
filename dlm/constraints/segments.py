"""Sums and maxima over groups of numbers, in a fixed order: the same bits everywhere.

Shapes: K partitions into groups, R rows, W columns, n numbers, G groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

ROOM = 1 << 22  # numbers that are gathered at a time
Reduce = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Segments:
    """A partition of the numbers 0 .. n - 1 into groups, as index tables, one for each level.

    A scatter on a GPU would add in the order in which threads arrive. The width of the tables is
    chosen by the caller, not derived from the numbers. So partitions can be stacked, and each gives
    the same bits stacked as alone. An index equal to the size of the level before is padding.
    """

    size: int  # n
    tables: tuple[Tensor, ...]  # int64 [K, lines, width], indices into the level before

    @classmethod
    def of(cls, groups: Tensor, count: int, width: int) -> "Segments":
        """Build a single partition.

        Args:
            groups: int64 [n], the group of each number.
            count: G.
            width: numbers that are reduced at a time.
        """
        size = pads = len(groups)
        groups, numbers = groups.sort(stable=True)
        counts, tables = groups.bincount(minlength=count), []
        while True:
            lines = counts.add(width - 1).div(width, rounding_mode="floor").clamp(min=1)
            place = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups]
            first = lines.cumsum(0) - lines
            table = torch.full((int(lines.sum()), width), pads)
            table[first[groups] + place // width, place % width] = numbers
            tables.append(table[None])
            if len(table) == count:
                return cls(size, tuple(tables))
            groups, counts = torch.arange(count).repeat_interleave(lines), lines
            numbers, pads = torch.arange(len(table)), len(table)

    @classmethod
    def stacked(cls, sets: Sequence["Segments"]) -> "Segments":
        """Stack several partitions of one width, padded to the largest."""
        if len(sets) == 1:
            return sets[0]
        size = pads = max(one.size for one in sets)
        own, tables = [one.size for one in sets], []
        for level in range(max(len(one.tables) for one in sets)):
            each = [one.level(level) for one in sets]
            lines = max(map(len, each))
            table = torch.full((len(sets), lines, each[0].shape[1]), pads)
            for place, (lone, end) in enumerate(zip(each, own, strict=True)):
                table[place, : len(lone)] = lone.masked_fill(lone == end, pads)
            tables.append(table)
            own, pads = [len(lone) for lone in each], lines
        return cls(size, tuple(tables))

    def level(self, number: int) -> Tensor:
        """A table of a single partition; past the last level, one that changes nothing."""
        if number < len(self.tables):
            return self.tables[number][0]
        _, count, width = self.tables[-1].shape
        return pad(torch.arange(count)[:, None], (0, width - 1), value=count)

    def of_rows(self, index: Tensor) -> "Segments":
        """Select the partition of each row by index, int64 [R]."""
        return Segments(self.size, tuple(chosen(table, index) for table in self.tables))

    def reduce(self, values: Tensor, how: Reduce, of: Tensor | None = None) -> Tensor:
        """Reduce each group of every row, with one partition for each row; -inf for an empty group.

        Args:
            values: float [R, W, n], or [R, W, k].
            how: `torch.logsumexp` or `torch.amax`.
            of: int64 [R, n], which of k values each number is; None if `values` has all n.

        Returns:
            [R, W, G].
        """
        columns = max(1, ROOM // max(1, len(values) * self.size))
        return torch.cat([self._reduce(some, how, of) for some in values.split(columns, 1)], 1)

    def _reduce(self, values: Tensor, how: Reduce, of: Tensor | None) -> Tensor:
        """`reduce` for all columns at once."""
        if of is not None:
            values = laid_out(values, of)
        for table in self.tables:
            padded = pad(values, (0, 1), value=-torch.inf)
            values = how(laid_out(padded, table.flatten(1)).unflatten(-1, table.shape[1:]), -1)
        return values


def chosen(parts: Tensor, index: Tensor) -> Tensor:
    """Select [R, ...] from parts [K, ...] by int64 [R]; a single part expands without a copy."""
    return parts.expand(len(index), *parts.shape[1:]) if len(parts) == 1 else parts[index]


def laid_out(values: Tensor, places: Tensor) -> Tensor:
    """Gather values [R, W, n] at int64 [R, m], the same for every column: [R, W, m]."""
    return values.gather(-1, places[:, None].expand(-1, values.shape[1], -1))
