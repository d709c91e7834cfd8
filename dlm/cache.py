"""Keys and values of earlier forwards.

Shapes: B rows (twice as many with guidance), H heads, L canvas, Q queries, E head width.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from dlm.varlen import by_rows

Lines = Tensor | slice
"""Rows of a cache, one for each row of a forward."""
EVERY: Final = slice(None)
Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
Masked = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Queries, keys, values and a mask of the attention backend."""


class Cache:
    """Keys and values at every position of every row, allocated once and written in place.

    One column more than the canvas has takes what nobody reads: queries beyond the end of a row.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows = rows
        self.length = length
        self.layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L + 1, H, E] of a layer that makes them [B, H, Q, E]."""
        if number == len(self.layers):
            _, heads, _, width = like.shape
            shape = (self.rows, self.length + 1, heads, width)  # a column is written in one piece
            # Zeros, not memory as it is found: a masked key still meets its value in a sum.
            self.layers.append((like.new_zeros(shape), like.new_zeros(shape)))
        return self.layers[number]

    def follow(self, other: "Cache", index: Tensor, first: int) -> None:
        """Take over rows `index` of a cache from row `first` on, as far as both have columns."""
        length, end = min(self.length, other.length), first + index.numel()
        adopts = end - first == self.rows and self.length == length
        for number, layer in enumerate(other.layers):
            rows = index.to(layer[0].device)
            if number == len(self.layers):
                if adopts:  # what the last column comes to hold is read by nobody
                    keys, values = (part[:, : length + 1].index_select(0, rows) for part in layer)
                    self.layers.append((keys, values))
                    continue
                shape = (self.rows, self.length + 1, *layer[0].shape[2:])
                self.layers.append((layer[0].new_zeros(shape), layer[1].new_zeros(shape)))
            for mine, theirs in zip(self.layers[number], layer, strict=True):
                mine[first:end, :length] = theirs[:, :length].index_select(0, rows)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer)


def near(lines: Lines, kept: Tensor) -> Lines:
    """The same on the device of keys or values."""
    return lines.to(kept.device) if isinstance(lines, Tensor) else lines


def among(kept: Tensor, lines: Lines) -> Tensor:
    """Those rows of keys or values; a view of them where they are a slice."""
    return kept[near(lines, kept)]


def runs(lengths: Sequence[int]) -> list[tuple[slice, int]]:
    """Rows that stand next to each other and have one length, and that length."""
    found, first = [], 0
    for length, same in groupby(lengths):
        rows = slice(first, first + len(list(same)))
        found.append((rows, length))
        first = rows.stop
    return found


def cut(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    width: int,
    lengths: Sequence[tuple[slice, int]],
) -> list[Masked]:
    """What attention works on of some rows at a time, without their padding.

    Args:
        query: [B, H, Q, E].
        key: [B, G, L, E], or with shadows of all rows behind the L.
        value: like `key`.
        mask: [B or 1, 1, Q or 1, as many].
        width: L.
        lengths: rows, and how many columns they have.
    """

    def seen(part: Tensor, columns: int, length: int) -> Tensor:
        shadows = part.shape[columns] - width
        own = part.narrow(columns, 0, length)
        return torch.cat((own, part.narrow(columns, width, shadows)), columns) if shadows else own

    made: list[Masked] = []
    for rows, length in lengths:
        keys, values = (seen(part[rows], 2, length) for part in (key, value))
        shown = mask if mask is None or len(mask) == 1 else mask[rows]
        shown = None if shown is None else seen(shown, 3, length)
        made.append((query[rows], keys, values, shown))
    return made


class View:
    """What stands between a layer and its attention."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor | None:
        """Attention of its own, [B, L, H, E], of [B, H, L, E] each; None leaves it to others."""
        return None

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """What attention works on, as `enter` but row by row and without their padding.

        None where rows are not taken apart.
        """
        return None

    def join(self, rows: list[Tensor]) -> Tensor:
        """What the layer goes on with, of what attention made row by row, [B, L, H, E]."""
        return torch.cat(rows)

    def enter(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Parts:
        """What attention works on, of what a layer made, [B, H, L, E] each."""
        return query, *self.update(key, value, layer)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values, and tell which ones to attend to."""
        raise NotImplementedError

    def leave(self, out: Tensor) -> Tensor:
        """What the layer goes on with, of what attention made, [B, L, H, E]."""
        return out


class Refresh(View):
    """A forward of whole rows, whose keys and values are kept."""

    def __init__(self, cache: Cache, length: int, lines: Lines = EVERY) -> None:
        """Take the columns to keep, and where the rows of the forward lie."""
        self.cache = cache
        self.length = length
        self.lines = lines

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep [B, H, L, E], and attend to just that."""
        for kept, new in zip(self.cache.layer(layer, key), (key, value), strict=True):
            kept[near(self.lines, kept), : self.length] = new[:, :, : self.length].transpose(1, 2)
        return key, value


class Padded(View):
    """A forward of whole rows of unlike lengths, padded, and of their shadows."""

    def __init__(self, keep: View | None, width: int, lengths: Sequence[int]) -> None:
        """Take what keeps keys and values, the columns of all rows, and those of each."""
        self.keep = keep
        self.width = width
        self.runs = runs(lengths)

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """Each row with the columns that it has, and all queries."""
        if not by_rows(query):
            return None
        key, value = self.update(key, value, layer)
        return cut(query, key, value, mask, self.width, self.runs)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Hand on what is to be kept."""
        return (key, value) if self.keep is None else self.keep.update(key, value, layer)


class Reuse(View):
    """A forward of some positions, which attend to all positions of their rows."""

    def __init__(
        self,
        cache: Cache,
        places: Tensor,
        length: int,
        lines: Lines = EVERY,
        lengths: Sequence[int] | None = None,
        *,
        whole: bool = True,
    ) -> None:
        """Take what is computed afresh, and how many columns there are to attend to.

        Args:
            cache: of the rows.
            places: int64 [B, Q], among the columns of all rows, which have L + 1 each.
            length: columns of each row.
            lines: where the rows of the forward lie.
            lengths: columns that the rows have; None where masks alone tell.
            whole: whether queries attend to all of these.
        """
        self.cache = cache
        self.places = places
        self.length = length
        self.lines = lines
        self.runs = None if lengths is None else runs(lengths)
        self.whole = whole

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """Each row with the columns that it has; neighbours of one length together."""
        if self.runs is None or not by_rows(query):
            return None
        key, value = self.update(key, value, layer)
        return cut(query, key, value, None if self.whole else mask, self.length, self.runs)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Replace keys and values at the columns, [B, H, Q, E]; those behind Q are not kept."""
        places = self.places.to(key.device)
        count = places.shape[1]
        merged = []
        for kept, new in zip(self.cache.layer(layer, key), (key, value), strict=True):
            kept.view(-1, *kept.shape[2:])[places] = new[:, :, :count].transpose(1, 2)
            seen = among(kept[:, : self.length], self.lines).transpose(1, 2)
            more = new[:, :, count:]
            merged.append(torch.cat((seen, more), 2) if more.shape[2] else seen)
        return merged[0], merged[1]
