"""What the host needs to know after a step, in one tensor: the only one it waits for.

Shapes: B rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.contract import Violation
from dlm.opening import Opening
from dlm.progress import Progress
from dlm.refresh import RefreshPlan

EACH = 0
"""Size of a part that has one number for each row."""


@dataclass(frozen=True, slots=True)
class After:
    """What a step left on the device."""

    broken: dict[Violation, Tensor]  # bool scalars
    canvas: Canvas
    seen: Canvas  # the same rows, up to the horizon of the next pass
    progress: Progress


class Part(NamedTuple):
    """Some numbers of a report."""

    name: Violation | str
    size: int  # how many numbers, or `EACH`
    of: Callable[[After], Tensor]  # bool or int64 [size or B]


class Report:
    """The layout of a loop's reports: flags, then counts.

    Flags: one per rule, whether it is broken; "done" of each row; and with branches "tries",
    whether a branch of any row tries something.

    Counts for the next forward pass: "scopes" and "reach" with a cache; "most", the number of open
    columns, with blocks ahead; "spared" if decoded tokens are left out; and "sees", the visible
    tokens of each row, if not all are visible.
    """

    def __init__(
        self,
        rules: Sequence[Violation],
        refreshes: RefreshPlan,
        opening: Opening,
        *,
        caching: bool,
        sees: bool,
    ) -> None:
        """Take the rules, the sources of the counts, and which counts there are."""
        self.rules = tuple(rules)
        flags = [Part(rule, 1, told_of(rule)) for rule in self.rules]
        if opening.traits.branches > 1:
            flags.append(Part("tries", 1, tries))
        flags.append(Part("done", EACH, lambda after: after.progress.done))
        counts = []
        if caching:
            counts.append(Part("scopes", EACH, lambda after: after.progress.scopes))
            counts.append(
                Part("reach", 1, lambda after: refreshes.reach(after.seen, after.progress))
            )
        if opening.traits.open is not None:
            counts.append(Part("most", 1, lambda after: opening.most(after.progress)))
        if refreshes.decoded_every:
            spared = refreshes.spared
            counts.append(Part("spared", 1, lambda after: spared(after.canvas, after.progress)))
        if sees:
            counts.append(Part("sees", EACH, lambda after: after.seen.length))
        self.flags, self.counts = flags, counts

    def write(self, after: After) -> Tensor:
        """The whole report, int64 [n]."""
        told = [torch.cat([part.of(after) for part in self.flags]).long()]
        told += [part.of(after) for part in self.counts]
        return told[0] if len(told) == 1 else torch.cat(told)

    def read(self, values: Sequence[int], batch: int) -> "Told":
        """Split the values of a report for `batch` rows."""
        left: Iterator[int] = iter(values)
        parts = (*self.flags, *self.counts)
        numbers = {part.name: [*islice(left, part.size or batch)] for part in parts}
        broken = [rule for rule in self.rules if numbers[rule][0]]
        return Told(broken, [bool(flag) for flag in numbers["done"]], numbers)


class Told(NamedTuple):
    """A report as read by the host."""

    broken: list[Violation]
    done: list[bool]
    numbers: dict[Violation | str, list[int]]

    def one(self, name: str, otherwise: int) -> int:
        """The number of a part, or a default if the report does not have it."""
        return self.numbers[name][0] if name in self.numbers else otherwise


def told_of(rule: Violation) -> Callable[[After], Tensor]:
    """A function that tells whether a rule is broken, bool [1]."""
    return lambda after: after.broken[rule][None]


def tries(after: After) -> Tensor:
    """Whether a branch of any unfinished row tries something, bool [1]."""
    guess = after.progress.guess
    assert guess is not None
    return (guess.marks.any(-1).any(-1) & ~after.progress.done).any()[None]
