"""Where the rows of a batch stand between two forwards.

Shapes: B rows, L canvas, C branches, W window, K likeliest tokens.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, TypeVar

from torch import Tensor

from dlm.packing import Packing
from dlm.tree import mapped
from dlm.window import Window

T = TypeVar("T")


class Scope(IntEnum):
    """What a forward computes of a row; a cache keeps it."""

    WINDOW = 0  # what a cache leaves to compute
    ANSWER = 1  # all from its first block on
    ROW = 2


@dataclass(frozen=True, slots=True)
class Due:
    """What the host knows about the rows of a forward."""

    lengths: list[int]  # tokens of each row
    tails: list[int]  # those from its first block on
    scopes: list[Scope]  # what is computed of each
    reach: int  # most positions to compute of a row's window
    width: int  # columns of a window, those at its end left out that may change in no row
    packing: Packing | None
    """Of all rows computed as a whole, with their branches; None where padding is computed, too."""
    rooms: tuple[int, int] = (0, 0)
    """Rows to compute from their first block on, and as a whole, where of others it is the window.
    Rounded up to powers of two so that one recording fits them: the device finds out which those
    are. 0: those that `scopes` names."""
    alike: bool = True
    """Whether the branches of every row are alike, so that one of each is computed."""
    spared: int = 0  # columns of a window that are left out in every row of which that is computed
    sees: list[int] | None = None  # tokens of each row that are seen; None for all
    across: int | None = None  # columns of the canvas that are looked at; None for all

    @property
    def scope(self) -> Scope | None:
        """What is computed of all rows; None where that differs."""
        first = self.scopes[0]
        return first if self.scopes.count(first) == len(self.scopes) else None

    @property
    def tail(self) -> int:
        """Most positions to compute of a row from its first block on; 0 where that is of none."""
        pairs = zip(self.tails, self.scopes, strict=True)
        return max((tail for tail, scope in pairs if scope is Scope.ANSWER), default=0)

    def shape(self, width: int) -> Hashable:
        """What forwards that ask the same of the device share, on a canvas of `width` columns."""
        across = self.across or width
        scope, padded = self.scope, min(self.lengths) < across
        if scope is Scope.ROW:
            lengths = padded if self.packing is None else tuple(self.lengths)
            return scope, lengths, self.width, self.alike, across
        if scope is Scope.ANSWER:
            return scope, padded, self.width, self.tail, self.alike, across
        rest = self.tail, self.rooms, self.alike, self.spared, across
        return scope, padded, self.reach, self.width, *rest

    def seen(self) -> "Due":
        """The same of rows that end where no forward looks on."""
        if self.sees is None:
            return self
        every = zip(self.tails, self.lengths, self.sees, strict=True)
        tails = [tail - length + sees for tail, length, sees in every]
        return replace(self, lengths=self.sees, tails=tails, across=max(self.sees), sees=None)

    @classmethod
    def stack(cls, every: Sequence["Due"]) -> "Due":
        """Of the rows of several, not packed yet."""
        lengths = [length for each in every for length in each.lengths]
        tails = [tail for each in every for tail in each.tails]
        scopes = [scope for each in every for scope in each.scopes]
        reach, width = (max(getattr(each, n) for each in every) for n in ("reach", "width"))
        alike, spared = all(each.alike for each in every), min(each.spared for each in every)
        sees = [end for each in every for end in each.sees or ()] or None
        made = cls(lengths, tails, scopes, reach, width, None)
        return replace(made, alike=alike, spared=spared, sees=sees)

    def lines(self, branches: int) -> "Due":
        """Of the branches of every row, those of one row behind each other."""
        answers, rows = self.rooms
        rooms = answers * branches, rows * branches
        each = [row for row in range(len(self.lengths)) for _ in range(branches)]
        return replace(self.select(each), packing=self.packing, rooms=rooms)

    def select(self, stay: Sequence[int]) -> "Due":
        """The rows `stay`, not packed yet."""
        lengths = [self.lengths[row] for row in stay]
        tails = [self.tails[row] for row in stay]
        scopes = [self.scopes[row] for row in stay]
        sees = None if self.sees is None else [self.sees[row] for row in stay]
        rest = replace(self, packing=None, rooms=(0, 0), sees=sees)
        return replace(rest, lengths=lengths, tails=tails, scopes=scopes)


def going_along(scopes: Sequence[Scope], done: Sequence[bool]) -> list[Scope]:
    """The same, where rows that are done take what all others do: they must not make them unlike.

    Where others differ it is the least.
    """
    going = {scope for scope, over in zip(scopes, done, strict=True) if not over}
    rest = going.pop() if len(going) == 1 else Scope.WINDOW
    return [rest if over else scope for scope, over in zip(scopes, done, strict=True)]


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
    scopes: Tensor  # int64 [B], what a cache has the next forward compute, a `Scope`
    since: Tensor
    """Forwards since its answer was computed as a whole, and since the row was, int64 [B, 2]. Not
    counted where no interval asks for it."""
    kept: Tensor  # int64 [B], columns in front of it have keys of the tokens that they hold
    bound: Tensor  # int64 [B], most forwards the row may take in all
    tally: Tally
    guess: Guess | None = None  # None with a decoder that has one branch
    open: Tensor | None = None
    """One past the last canvas position that may change, int64 [B]; None with one block."""
    fresh: Tensor | None = None
    """Columns of the window that the last forward did not see as they are, bool [B, W]: it saw
    masks there, or they were not open. None where that makes no difference."""

    def narrow(self, width: int) -> "Progress":
        """The same with the first columns of the windows."""
        window = self.window.narrow(width)
        if window is self.window:
            return self
        fresh = None if self.fresh is None else self.fresh[:, :width]
        return replace(self, window=window, fresh=fresh)

    def select(self, index: Tensor, length: int) -> "Progress":
        """The rows `index`, on a canvas of `length` columns."""
        return Progress(
            state=select_rows(self.state, index),
            window=self.window.select(index, length),
            hold=self.hold[index],
            done=self.done[index],
            spent=self.spent[index],
            made=self.made[index],
            scopes=self.scopes[index],
            since=self.since[index],
            kept=self.kept[index],
            bound=self.bound[index],
            tally=select_rows(self.tally, index),
            guess=select_rows(self.guess, index),
            open=select_rows(self.open, index),
            fresh=select_rows(self.fresh, index),
        )


def select_rows(value: T, index: Tensor) -> T:
    """The rows `index` of a value made of tensors with a leading row axis."""
    return mapped(lambda part: part[index], value)
