"""The KV cache, and the views through which attention fills it or reads from it.

Shapes: B rows (twice as many with guidance), H heads, L canvas, Q queries, E head width.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from dlm.varlen import by_rows

Lines = Tensor | slice
"""Rows of a cache, one for each row of a forward pass."""
EVERY: Final = slice(None)
Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
Masked = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Queries, keys, values and a mask for the attention backend."""


class Cache:
    """Keys and values at every position of every row, allocated once and written in place.

    It has one column more than the canvas, which is never read: it takes the keys and values of
    queries past the end of a row.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows = rows
        self.length = length
        self.layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L + 1, H, E] of a layer, allocated to match `like`, [B, H, Q, E]."""
        if number == len(self.layers):
            _, heads, _, width = like.shape
            shape = (self.rows, self.length + 1, heads, width)  # so that a column is contiguous
            # Zeros, as attention still adds 0 times the value of a masked key: NaN would spread.
            self.layers.append((like.new_zeros(shape), like.new_zeros(shape)))
        return self.layers[number]

    def follow(self, other: "Cache", index: Tensor, first: int) -> None:
        """Copy rows `index` of another cache to rows `first` and up, for the columns both have."""
        length, end = min(self.length, other.length), first + index.numel()
        adopts = end - first == self.rows and self.length == length
        for number, layer in enumerate(other.layers):
            rows = index.to(layer[0].device)
            if number == len(self.layers):
                if adopts:  # with the last column, which is never read
                    keys, values = (part[:, : length + 1].index_select(0, rows) for part in layer)
                    self.layers.append((keys, values))
                    continue
                shape = (self.rows, self.length + 1, *layer[0].shape[2:])
                self.layers.append((layer[0].new_zeros(shape), layer[1].new_zeros(shape)))
            for mine, theirs in zip(self.layers[number], layer, strict=True):
                mine[first:end, :length] = theirs[:, :length].index_select(0, rows)

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(part.nbytes for layer in self.layers for part in layer)


def near(lines: Lines, kept: Tensor) -> Lines:
    """The same row index on the device of `kept`."""
    return lines.to(kept.device) if isinstance(lines, Tensor) else lines


def among(kept: Tensor, lines: Lines) -> Tensor:
    """The given rows of keys or values; a view if `lines` is a slice."""
    return kept[near(lines, kept)]


def runs(lengths: Sequence[int]) -> list[tuple[slice, int]]:
    """Group adjacent rows of equal length: the rows of each group, and their length."""
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
    """Split a batch into groups of rows without padding, as inputs for attention.

    Args:
        query: [B, H, Q, E].
        key: [B, G, L, E], or with the shadows of all rows appended after the L columns.
        value: like `key`.
        mask: [B or 1, 1, Q or 1, columns of `key`].
        width: L.
        lengths: groups of rows and their number of columns, from `runs`.
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
    """Sits between a layer and its attention: chooses the keys and values to attend to."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor | None:
        """Compute attention here, [B, L, H, E] of [B, H, L, E] each; None leaves it to others."""
        return None

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """Inputs of attention like `enter`, but split by rows and without padding.

        None if the batch is not split.
        """
        return None

    def join(self, rows: list[Tensor]) -> Tensor:
        """Combine the outputs of attention on the parts of `apart`, [B, L, H, E]."""
        return torch.cat(rows)

    def enter(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Parts:
        """The queries, keys and values that attention uses, from a layer's [B, H, L, E] each."""
        return query, *self.update(key, value, layer)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values, and return those to attend to."""
        raise NotImplementedError

    def leave(self, out: Tensor) -> Tensor:
        """The input of the next step of the layer, from attention's output [B, L, H, E]."""
        return out


class Refresh(View):
    """A forward pass over whole rows that stores their keys and values."""

    def __init__(self, cache: Cache, length: int, lines: Lines = EVERY) -> None:
        """Take the cache, the number of columns to store, and the rows of the cache to fill."""
        self.cache = cache
        self.length = length
        self.lines = lines

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store [B, H, L, E], and attend to these alone."""
        for kept, new in zip(self.cache.layer(layer, key), (key, value), strict=True):
            kept[near(self.lines, kept), : self.length] = new[:, :, : self.length].transpose(1, 2)
        return key, value


class Padded(View):
    """A forward pass over whole rows of a ragged batch, padded, and their shadows."""

    def __init__(self, keep: View | None, width: int, lengths: Sequence[int]) -> None:
        """Take the view that stores keys and values, the padded width, and the rows' lengths."""
        self.keep = keep
        self.width = width
        self.runs = runs(lengths)

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """Split rows by length: each attends to its own columns, with all its queries."""
        if not by_rows(query):
            return None
        key, value = self.update(key, value, layer)
        return cut(query, key, value, mask, self.width, self.runs)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Pass keys and values on to be stored."""
        return (key, value) if self.keep is None else self.keep.update(key, value, layer)


class Reuse(View):
    """A forward pass over some positions, which attend to all cached positions of their rows."""

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
        """Take the positions that are recomputed, and the number of columns to attend to.

        Args:
            cache: of the rows.
            places: int64 [B, Q], indices into the flattened columns of all rows, L + 1 per row.
            length: columns of each row.
            lines: the rows of the cache that the rows of the forward pass use.
            lengths: columns of each row; None if they are known only to the mask.
            whole: whether queries attend to all columns of their row, so that no mask is needed.
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
        """Split rows by length, grouping neighbours of equal length."""
        if self.runs is None or not by_rows(query):
            return None
        key, value = self.update(key, value, layer)
        return cut(query, key, value, None if self.whole else mask, self.length, self.runs)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, Q, E] at their columns; extra ones past Q are not stored."""
        places = self.places.to(key.device)
        count = places.shape[1]
        merged = []
        for kept, new in zip(self.cache.layer(layer, key), (key, value), strict=True):
            kept.view(-1, *kept.shape[2:])[places] = new[:, :, :count].transpose(1, 2)
            seen = among(kept[:, : self.length], self.lines).transpose(1, 2)
            more = new[:, :, count:]
            merged.append(torch.cat((seen, more), 2) if more.shape[2] else seen)
        return merged[0], merged[1]
