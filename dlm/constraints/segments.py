"""Sums and maxima over groups of numbers, in an order of their own: the same bits everywhere.

Shapes: n numbers, G groups, R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

WIDE = 32  # numbers brought together at a time
Reduce = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Segments:
    """Groups of the numbers 0 .. n - 1, as tables of at most 32 columns, one for each level.

    Scattering would add in whatever order a GPU's threads come.
    """

    tables: tuple[Tensor, ...]  # int64 [m, at most 32], into the level before; its size is a pad

    @classmethod
    def of(cls, groups: Tensor, count: int) -> "Segments":
        """Given the group of each number, int64 [n], and how many groups there are."""
        numbers, groups = groups.argsort(stable=True), groups.sort(stable=True).values
        size, tables = len(numbers), []
        while True:
            counts = groups.bincount(minlength=count)
            place = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups]
            # Each group at least one line, also where it is empty.
            lines = counts.sub(1).div(WIDE, rounding_mode="floor").add(1).clamp(min=1)
            first = lines.cumsum(0) - lines
            table = torch.full((int(lines.sum()), int(counts.clamp(1, WIDE).max())), size)
            table[first[groups] + place // WIDE, place % WIDE] = numbers
            tables.append(table)
            if len(table) == count:
                return cls(tuple(tables))
            groups = torch.arange(count).repeat_interleave(lines)
            numbers, size = torch.arange(len(table)), len(table)

    def reduce(self, values: Tensor, how: Reduce) -> Tensor:
        """Of each group, [R, G], of values [R, n]: `torch.logsumexp` or `torch.amax`.

        -inf where a group is empty.
        """
        for table in self.tables:
            padded = pad(values, (0, 1), value=-torch.inf)
            values = how(padded[:, table], -1)
        return values
