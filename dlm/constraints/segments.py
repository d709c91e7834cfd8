"""Sums and maxima over groups of numbers, in an order of their own: the same bits everywhere.

Shapes: n numbers, G groups, R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

WIDTHS = (2, 4, 8, 16, 32, 64, 128)  # numbers that may be brought together at a time
LEVEL = 2000  # numbers that take as long to bring together as it takes to begin another level
ROOM = 1 << 22  # numbers that are laid out anew at a time
Reduce = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Segments:
    """Groups of the numbers 0 .. n - 1, as tables, one for each level.

    Scattering would add in whatever order a GPU's threads come.
    """

    tables: tuple[Tensor, ...]  # int64 [lines, width], into the level before; its size is a pad

    @classmethod
    def of(cls, groups: Tensor, count: int) -> "Segments":
        """Given the group of each number, int64 [n], and how many groups there are."""
        numbers, groups = groups.argsort(stable=True), groups.sort(stable=True).values
        counts = groups.bincount(minlength=count)
        width = min(WIDTHS, key=lambda width: cost(counts, width))
        size, tables = len(numbers), []
        while True:
            lines = lines_of(counts, width)
            place = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups]
            first = lines.cumsum(0) - lines
            table = torch.full((int(lines.sum()), width), size)
            table[first[groups] + place // width, place % width] = numbers
            tables.append(table)
            if len(table) == count:
                return cls(tuple(tables))
            groups, counts = torch.arange(count).repeat_interleave(lines), lines
            numbers, size = torch.arange(len(table)), len(table)

    def reduce(self, values: Tensor, how: Reduce, of: Tensor | None = None) -> Tensor:
        """Reduce each group; -inf where one is empty.

        Args:
            values: float [R, n], or [R, k].
            how: `torch.logsumexp` or `torch.amax`.
            of: int64 [n], which of k values each number is; None for as many.

        Returns:
            [R, G].
        """
        rows = max(1, ROOM // max(1, values.shape[1] if of is None else len(of)))
        parts = values.split(rows)
        laid = parts if of is None else (part.index_select(1, of) for part in parts)
        return torch.cat([self._reduce(part, how) for part in laid])

    def _reduce(self, values: Tensor, how: Reduce) -> Tensor:
        """Of all rows at once."""
        for table in self.tables:
            padded = pad(values, (0, 1), value=-torch.inf)
            laid = padded.index_select(1, table.flatten()).unflatten(1, table.shape)
            values = how(laid, -1)
        return values


def lines_of(counts: Tensor, width: int) -> Tensor:
    """Lines of a table that groups of these sizes fill, at least one each."""
    return counts.add(width - 1).div(width, rounding_mode="floor").clamp(min=1)


def cost(counts: Tensor, width: int) -> int:
    """Numbers laid out for groups of these sizes, what the levels themselves take included."""
    total = 0
    while True:
        counts = lines_of(counts, width)
        total += int(counts.sum()) * width + LEVEL
        if int(counts.max()) == 1:
            return total
