"""What the host has to know of a step, laid end to end in one tensor: it waits for that alone.

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
from dlm.renewal import Renewal

EACH = 0
"""Size of a part with a number for each row."""


@dataclass(frozen=True, slots=True)
class After:
    """What a step left on the device."""

    broken: dict[Violation, Tensor]  # bool scalars
    canvas: Canvas
    seen: Canvas  # the same rows, as far as the next forward sees them
    progress: Progress


class Part(NamedTuple):
    """Some numbers of a report."""

    name: Violation | str
    size: int  # how many, or `EACH`
    of: Callable[[After], Tensor]  # bool or int64 [size or B]


class Report:
    """The parts of every report of a loop, in their order: flags, then counts.

    Flags are of one number for each rule, whether it is broken, and "done" of each row; "tries",
    whether a branch of any row tries something, is there with branches alone. Counts are of what
    the next forward computes: "scopes" and "reach" with a cache, "most" columns that are open with
    blocks ahead, "spared" where decoded tokens are left out, and what each row "sees" where it does
    not see all.
    """

    def __init__(
        self,
        rules: Sequence[Violation],
        renewal: Renewal,
        opening: Opening,
        *,
        caching: bool,
        sees: bool,
    ) -> None:
        """Take the rules, what a cache and blocks ahead ask for, and whether rows end early."""
        self.rules = tuple(rules)
        flags = [Part(rule, 1, told_of(rule)) for rule in self.rules]
        if opening.traits.branches > 1:
            flags.append(Part("tries", 1, tries))
        flags.append(Part("done", EACH, lambda after: after.progress.done))
        counts = []
        if caching:
            counts.append(Part("scopes", EACH, lambda after: after.progress.scopes))
            counts.append(Part("reach", 1, lambda after: renewal.reach(after.seen, after.progress)))
        if opening.traits.open is not None:
            counts.append(Part("most", 1, lambda after: opening.most(after.progress)))
        if renewal.decoded_every:
            spared = renewal.spared
            counts.append(Part("spared", 1, lambda after: spared(after.canvas, after.progress)))
        if sees:
            counts.append(Part("sees", EACH, lambda after: after.seen.length))
        self.flags, self.counts = flags, counts

    def write(self, after: After) -> Tensor:
        """All of it, int64 [n]."""
        told = [torch.cat([part.of(after) for part in self.flags]).long()]
        told += [part.of(after) for part in self.counts]
        return told[0] if len(told) == 1 else torch.cat(told)

    def read(self, values: Sequence[int], batch: int) -> "Told":
        """The parts of what was written of so many rows."""
        left: Iterator[int] = iter(values)
        parts = (*self.flags, *self.counts)
        numbers = {part.name: [*islice(left, part.size or batch)] for part in parts}
        broken = [rule for rule in self.rules if numbers[rule][0]]
        return Told(broken, [bool(flag) for flag in numbers["done"]], numbers)


class Told(NamedTuple):
    """A report that the host has read."""

    broken: list[Violation]
    done: list[bool]
    numbers: dict[Violation | str, list[int]]

    def one(self, name: str, otherwise: int) -> int:
        """The number of a part, or another where it is none of the report."""
        return self.numbers[name][0] if name in self.numbers else otherwise


def told_of(rule: Violation) -> Callable[[After], Tensor]:
    """What tells whether a rule is broken, bool [1]."""
    return lambda after: after.broken[rule][None]


def tries(after: After) -> Tensor:
    """Whether a branch of any row that goes on tries something, bool [1]."""
    guess = after.progress.guess
    assert guess is not None
    return (guess.marks.any(-1).any(-1) & ~after.progress.done).any()[None]
