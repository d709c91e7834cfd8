"""The state of a batch's rows between two forward passes.

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
    """The part of a row that a forward pass computes, and a cache stores."""

    WINDOW = 0  # what a cache does not cover
    ANSWER = 1  # everything from the first block on
    ROW = 2


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """What the host knows about the rows of the next forward pass."""

    lengths: list[int]  # tokens of each row
    tails: list[int]  # tokens of each row from its first block on
    scopes: list[Scope]  # what is computed of each row
    reach: int  # most positions to compute of a row's window
    width: int  # columns of a window, without trailing ones that may change in no row
    packing: Packing | None
    """Of whole rows with all their branches; None if the padding is computed instead."""
    rooms: tuple[int, int] = (0, 0)
    """How many rows to compute from their first block on, and as a whole, while others compute a
    window. Rounded up to powers of two so that one recording fits: the device finds out which rows
    these are. 0 means the rows that `scopes` names."""
    alike: bool = True
    """Whether the branches of every row are equal, so that one of each is computed."""
    spared: int = 0  # columns left out of every window that is computed
    sees: list[int] | None = None  # visible tokens of each row; None for all
    across: int | None = None  # columns of the canvas that are read; None for all

    @property
    def scope(self) -> Scope | None:
        """The scope that all rows share; None if they differ."""
        first = self.scopes[0]
        return first if self.scopes.count(first) == len(self.scopes) else None

    @property
    def tail(self) -> int:
        """Most positions to compute of a row from its first block on; 0 if no row does so."""
        pairs = zip(self.tails, self.scopes, strict=True)
        return max((tail for tail, scope in pairs if scope is Scope.ANSWER), default=0)

    def shape(self, width: int) -> Hashable:
        """The key of a recording: equal for forward passes that launch the same work.

        `width` is that of the canvas.
        """
        across = self.across or width
        scope, padded = self.scope, min(self.lengths) < across
        if scope is Scope.ROW:
            lengths = padded if self.packing is None else tuple(self.lengths)
            return scope, lengths, self.width, self.alike, across
        if scope is Scope.ANSWER:
            return scope, padded, self.width, self.tail, self.alike, across
        rest = self.tail, self.rooms, self.alike, self.spared, across
        return scope, padded, self.reach, self.width, *rest

    def seen(self) -> "ForwardPlan":
        """The same, with rows cut to their visible tokens."""
        if self.sees is None:
            return self
        every = zip(self.tails, self.lengths, self.sees, strict=True)
        tails = [tail - length + sees for tail, length, sees in every]
        return replace(self, lengths=self.sees, tails=tails, across=max(self.sees), sees=None)

    @classmethod
    def stack(cls, every: Sequence["ForwardPlan"]) -> "ForwardPlan":
        """Concatenate the rows of several; not packed yet."""
        lengths = [length for each in every for length in each.lengths]
        tails = [tail for each in every for tail in each.tails]
        scopes = [scope for each in every for scope in each.scopes]
        reach, width = (max(getattr(each, n) for each in every) for n in ("reach", "width"))
        alike, spared = all(each.alike for each in every), min(each.spared for each in every)
        sees = [end for each in every for end in each.sees or ()] or None
        made = cls(lengths, tails, scopes, reach, width, None)
        return replace(made, alike=alike, spared=spared, sees=sees)

    def lines(self, branches: int) -> "ForwardPlan":
        """The same with one row per branch, the branches of a row adjacent."""
        answers, rows = self.rooms
        rooms = answers * branches, rows * branches
        each = [row for row in range(len(self.lengths)) for _ in range(branches)]
        return replace(self.select(each), packing=self.packing, rooms=rooms)

    def select(self, stay: Sequence[int]) -> "ForwardPlan":
        """The rows `stay`; not packed yet."""
        lengths = [self.lengths[row] for row in stay]
        tails = [self.tails[row] for row in stay]
        scopes = [self.scopes[row] for row in stay]
        sees = None if self.sees is None else [self.sees[row] for row in stay]
        rest = replace(self, packing=None, rooms=(0, 0), sees=sees)
        return replace(rest, lengths=lengths, tails=tails, scopes=scopes)


def going_along(scopes: Sequence[Scope], done: Sequence[bool]) -> list[Scope]:
    """The scopes, where finished rows take that of the others, so that all can be equal.

    If the others differ, finished rows take the smallest scope.
    """
    going = {scope for scope, over in zip(scopes, done, strict=True) if not over}
    rest = going.pop() if len(going) == 1 else Scope.WINDOW
    return [rest if over else scope for scope, over in zip(scopes, done, strict=True)]


@dataclass(frozen=True, slots=True)
class Tally:
    """Running totals of each row's forward passes."""

    decoded: Tensor  # int64 [B], commits minus remasks
    queries: Tensor  # int64 [B], positions evaluated by the network
    path: Tensor | None  # float64 [B], ln q of committed tokens; None if there is no path

    def plus(self, decoded: Tensor, queries: Tensor, path: Tensor | None) -> "Tally":
        """The totals after one more forward pass."""
        total = None if self.path is None or path is None else self.path + path
        return Tally(self.decoded + decoded, self.queries + queries, total)


@dataclass(frozen=True, slots=True)
class Guess:
    """What each row's branches try at the next forward pass, with statistics of the last one."""

    marks: Tensor  # bool [B, C, W], masked positions that each branch fills
    sampled: Tensor  # int64 [B, W], the tokens they are filled with
    confidence: Tensor  # float32 [B, W], of these tokens; 0 where not measured
    top_tokens: Tensor | None  # int64 [B, W, K], likeliest first
    top_probabilities: Tensor | None  # float32 [B, W, K]


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of each row."""

    state: Any  # of the decoder
    window: Window  # what may change at the next forward pass
    hold: Tensor  # bool [B], whether the row stays in its block
    done: Tensor  # bool [B], whether the row needs no further forward pass
    spent: Tensor  # int64 [B], forward passes made on the block
    made: Tensor  # int64 [B], forward passes made on the row
    scopes: Tensor  # int64 [B], `Scope` of the next forward pass, with a cache
    since: Tensor
    """Forward passes since all of the row's answer was computed, and since all of the row was;
    int64 [B, 2]. Not counted unless an option sets such an interval."""
    kept: Tensor  # int64 [B], columns before this have up-to-date keys
    bound: Tensor  # int64 [B], most forward passes the row may take
    tally: Tally
    guess: Guess | None = None  # None if the decoder has one branch
    open: Tensor | None = None
    """One past the last canvas position that may change, int64 [B]; None with one block."""
    fresh: Tensor | None = None
    """Bool [B, W], columns of the window that the last forward pass did not see in their present
    state: it saw masks there, or they were not open. None if nothing depends on it."""

    def narrow(self, width: int) -> "Progress":
        """The same, with windows cut to their first columns."""
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
    """The rows `index` of a value whose tensors have a leading row axis."""
    return mapped(lambda part: part[index], value)
