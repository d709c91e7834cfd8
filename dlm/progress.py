"""Where the rows of a batch stand between two forwards.

Shapes: B rows, L canvas, C branches, W window, K likeliest tokens.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from dlm.packing import Packing
from dlm.tree import mapped
from dlm.window import Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Due:
    """What the host knows about the rows of a forward."""

    lengths: list[int]  # tokens of each row
    refresh: list[bool]  # whether a row is computed as a whole, which a cache then keeps
    reach: int  # most positions of a row to compute where not all are
    packing: Packing | None
    """Of all rows computed as a whole, with their branches; None where padding is computed, too."""
    room: int = 0
    """Rows to compute as a whole where some are, rounded up to a power of two so that one recording
    fits them: the device finds out which those are. 0: those that `refresh` names."""
    alike: bool = True
    """Whether the branches of every row are alike, so that one of each is computed."""

    @property
    def whole(self) -> bool:
        """Whether all rows are computed as a whole."""
        return all(self.refresh)

    def shape(self, width: int) -> Hashable:
        """What forwards that ask the same of the device share, on a canvas of `width` columns."""
        padded = min(self.lengths) < width
        if self.whole:
            return True, padded if self.packing is None else tuple(self.lengths), self.alike
        return False, padded, self.reach, self.room, self.alike

    @classmethod
    def stack(cls, parts: Sequence["Due"]) -> "Due":
        """Of the rows of several, not packed yet."""
        lengths = [length for part in parts for length in part.lengths]
        refresh = [fresh for part in parts for fresh in part.refresh]
        reach, alike = max(part.reach for part in parts), all(part.alike for part in parts)
        return cls(lengths, refresh, reach, None, alike=alike)

    def lines(self, branches: int) -> "Due":
        """Of the branches of every row, those of one row behind each other."""
        lengths = [length for length in self.lengths for _ in range(branches)]
        refresh = [fresh for fresh in self.refresh for _ in range(branches)]
        room = self.room * branches
        return replace(self, lengths=lengths, refresh=refresh, room=room)

    def select(self, stay: Sequence[int]) -> "Due":
        """The rows `stay`, not packed yet."""
        lengths = [self.lengths[row] for row in stay]
        refresh = [self.refresh[row] for row in stay]
        return Due(lengths, refresh, self.reach, None, alike=self.alike)


@dataclass(frozen=True, slots=True)
class Tally:
    """What the forwards of each row have come to."""

    decoded: Tensor  # int64 [B], commits less remasks
    queries: Tensor  # int64 [B], positions the network was evaluated at
    path: Tensor | None  # float64 [B], ln q of what was committed; None where that is no path

    def plus(self, decoded: Tensor, queries: Tensor, path: Tensor | None) -> "Tally":
        """After one more forward."""
        total = None if self.path is None or path is None else self.path + path
        return Tally(self.decoded + decoded, self.queries + queries, total)


@dataclass(frozen=True, slots=True)
class Guess:
    """What the branches of each row try at the next forward, as the one before it saw that."""

    marks: Tensor  # bool [B, C, W], masked positions that a branch fills
    sampled: Tensor  # int64 [B, W], with these tokens
    confidence: Tensor  # float32 [B, W], theirs; 0 where not measured
    top_tokens: Tensor | None  # int64 [B, W, K], likeliest first
    top_probabilities: Tensor | None  # float32 [B, W, K]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where each row stands."""

    state: Any  # of the decoder
    window: Window  # what may change at the next forward
    hold: Tensor  # bool [B], whether the row stays in its block
    done: Tensor  # bool [B], whether the row needs no further forward
    spent: Tensor  # int64 [B], forwards made on the block
    made: Tensor  # int64 [B], forwards made on the row
    kept: Tensor  # int64 [B], columns in front of it are final, and their keys cached
    bound: Tensor  # int64 [B], most forwards the row may take in all
    tally: Tally
    guess: Guess | None = None  # None with a decoder that has one branch

    def select(self, index: Tensor, length: int) -> "Progress":
        """The rows `index`, on a canvas of `length` columns."""
        return Progress(
            state=select_rows(self.state, index),
            window=self.window.select(index, length),
            hold=self.hold[index],
            done=self.done[index],
            spent=self.spent[index],
            made=self.made[index],
            kept=self.kept[index],
            bound=self.bound[index],
            tally=select_rows(self.tally, index),
            guess=select_rows(self.guess, index),
        )


def select_rows(value: T, index: Tensor) -> T:
    """The rows `index` of a value made of tensors with a leading row axis."""
    return mapped(lambda part: part[index], value)
