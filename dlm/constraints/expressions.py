"""Regular languages of bytes put together from parts, as automata.

Shapes: S states.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from dlm.constraints.language import STATES, ByteAutomaton

RAW = 2 * STATES
"""Most states before those that no text tells apart are one."""
NODES = 1 << 18
"""Most nodes of what is put together: each copy of a part that repeats has its own."""
WORK = 1 << 22
"""Most nodes that are looked at while sets of them are followed, some seconds' worth: each state of
16 KB of schema can be a set of a thousand. Schemas that are in use take a tenth of it."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """A byte out of some."""

    bytes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Series:
    """Parts one behind the other; the empty text for none."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of some parts; nothing at all for none."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part, as often as there may be copies of it."""

    part: "Expression"
    least: int = 0
    most: int | None = None  # None for any number


@dataclass(frozen=True, slots=True)
class Joined:
    """A part once or more often, something between each two."""

    part: "Expression"
    between: "Expression"


@dataclass(frozen=True, slots=True)
class Picked:
    """Parts in order, at least one and those that are needed (True), something between each two."""

    parts: tuple[tuple["Expression", bool], ...]
    between: "Expression"


Expression = OneOf | Series | Either | Repeated | Joined | Picked


def series(*parts: Expression) -> Expression:
    """Parts one behind the other."""
    return Series(parts)


def either(*parts: Expression) -> Expression:
    """One of some parts."""
    return Either(parts)


def maybe(part: Expression) -> Expression:
    """A part or nothing."""
    return Repeated(part, 0, 1)


def span(first: int, last: int) -> Expression:
    """A byte between two."""
    return OneOf(frozenset(range(first, last + 1)))


def signs(letters: str) -> Expression:
    """One of some ASCII letters."""
    return OneOf(frozenset(letters.encode("ascii")))


BYTES: Final = tuple(OneOf(frozenset({byte})) for byte in range(256))
"""Each by itself: long texts share them."""


def text(letters: str) -> Expression:
    """A text as it stands."""
    return Series(tuple(BYTES[byte] for byte in letters.encode()))


def nodes_of(expression: Expression) -> int:
    """How many nodes `Net.add` makes of one, or one less."""
    if isinstance(expression, OneOf):
        return 2
    if isinstance(expression, Series):
        return sum(map(nodes_of, expression.parts))
    if isinstance(expression, Either):
        return 1 + sum(map(nodes_of, expression.parts))
    if isinstance(expression, Joined):
        return 1 + nodes_of(expression.part) + nodes_of(expression.between)
    if isinstance(expression, Picked):
        gaps = max(0, len(expression.parts) - 1)
        parts = sum(1 + nodes_of(part) for part, _ in expression.parts)
        return 1 + parts + gaps * nodes_of(expression.between)
    copies = expression.least + 1 if expression.most is None else expression.most
    return 1 + max(copies, expression.least) * nodes_of(expression.part)


@dataclass(slots=True)
class Net:
    """A nondeterministic automaton (Thompson 1968), as it is put together."""

    free: list[list[int]] = field(default_factory=list)  # where a node leads without a byte
    taken: list[tuple[frozenset[int], int] | None] = field(default_factory=list)
    work: int = 0  # nodes that were looked at

    def node(self) -> int:
        """Another node.

        Raises:
            ValueError: there are too many.
        """
        if len(self.free) >= NODES:
            raise ValueError(f"it has more than {NODES} parts")
        self.free.append([])
        self.taken.append(None)
        return len(self.free) - 1

    def add(self, expression: Expression, begin: int) -> int:
        """What an expression leads to from a node."""
        if isinstance(expression, OneOf):
            end = self.node()
            step = self.node()
            self.free[begin].append(step)
            self.taken[step] = expression.bytes, end
            return end
        if isinstance(expression, Series):
            for part in expression.parts:
                begin = self.add(part, begin)
            return begin
        if isinstance(expression, Either):
            end = self.node()
            for part in expression.parts:
                self.free[self.add(part, begin)].append(end)
            return end
        if isinstance(expression, Joined):
            again = self.node()
            self.free[begin].append(again)
            end = self.add(expression.part, again)
            self.free[self.add(expression.between, end)].append(again)
            return end
        if isinstance(expression, Picked):
            return self.pick(expression, begin)
        return self.repeat(expression, begin)

    def repeat(self, expression: Repeated, begin: int) -> int:
        """What copies of a part lead to."""
        for _ in range(expression.least):
            begin = self.add(expression.part, begin)
        if expression.most is None:
            again = self.node()
            self.free[begin].append(again)
            self.free[self.add(expression.part, again)].append(again)
            return again
        end = self.node()
        self.free[begin].append(end)
        for _ in range(expression.most - expression.least):
            begin = self.add(expression.part, begin)
            self.free[begin].append(end)
        return end

    def pick(self, expression: Picked, begin: int) -> int:
        """What parts that may be missing lead to.

        What may come next is one node, whichever part came before it: copies of all that follows,
        for each part that may be the first, have states that are the square of these.
        """
        parts, end = expression.parts, self.node()
        nexts = [self.node() for _ in parts]
        self.free[begin] += nexts[:1]
        last = max((place for place, (_, needed) in enumerate(parts) if needed), default=0)
        for place, (part, needed) in enumerate(parts):
            behind, after = self.add(part, nexts[place]), nexts[place + 1 : place + 2]
            if after:
                self.free[self.add(expression.between, behind)] += after
            if not needed:
                self.free[nexts[place]] += after
            if place >= last:
                self.free[behind].append(end)
        return end

    def closed(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """All that is reached from some nodes without a byte, and matters: steps and ends.

        Raises:
            ValueError: too many were looked at.
        """
        todo = [*nodes]
        found = set(todo)
        for node in todo:  # which grows
            more = [each for each in self.free[node] if each not in found]
            found.update(more)
            todo += more
        self.spend(len(todo))
        return tuple(sorted(node for node in found if self.taken[node] or not self.free[node]))

    def spend(self, nodes: int) -> None:
        """Count nodes that were looked at: not time, as what is refused must always be.

        Raises:
            ValueError: they are too many.
        """
        self.work += nodes
        if self.work > WORK:
            raise ValueError(f"it takes more than {WORK} steps to follow")

    def behind(
        self, nodes: Iterable[int], places: Mapping[frozenset[int], Sequence[int]]
    ) -> dict[int, tuple[int, ...]]:
        """Where a byte leads from some nodes, by the group of the byte; nowhere by others.

        Args:
            nodes: those of a state.
            places: groups of bytes that sets of them are made of.
        """
        targets: dict[frozenset[int], set[int]] = {}
        for node in nodes:
            step = self.taken[node]
            if step:
                targets.setdefault(step[0], set()).add(step[1])
        ways: dict[int, list[frozenset[int]]] = {}
        for some in targets:
            self.spend(len(places[some]))
            for place in places[some]:
                ways.setdefault(place, []).append(some)
        # Groups that the same sets have lead alike from here, as most of a string's do.
        reached: dict[tuple[frozenset[int], ...], tuple[int, ...]] = {}
        for sets in map(tuple, ways.values()):
            if sets not in reached:
                reached[sets] = self.closed(set().union(*(targets[some] for some in sets)))
        return {place: reached[tuple(sets)] for place, sets in sorted(ways.items())}


def automaton_of(expression: Expression) -> ByteAutomaton:
    """The smallest automaton of an expression, by sets of nodes.

    Raises:
        ValueError: it takes too many nodes, states or steps, or it is nested too deep.
    """
    net = Net()
    start = net.node()
    try:
        end = net.add(expression, start)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    last = net.node()
    net.free[end].append(last)
    sets = dict.fromkeys(step[0] for step in net.taken if step)
    groups = alike([*sets])
    places = {some: [n for n, group in enumerate(groups) if group[0] in some] for some in sets}
    found = {net.closed([start]): 0}
    todo, rows = list(found), []
    for nodes in todo:  # which grows
        row = [-1] * len(groups)
        for place, reached in net.behind(nodes, places).items():
            if reached not in found:
                if len(found) == RAW:
                    raise ValueError(f"it has more than {RAW} states before alike ones are one")
                found[reached] = len(found)
                todo.append(reached)
            row[place] = found[reached]
        rows.append(row)
    following = torch.full((len(rows) + 1, 256), len(rows))
    for group, column in zip(groups, zip(*rows, strict=True), strict=True):
        into = torch.tensor(column)
        following[:-1, group] = torch.where(into < 0, len(rows), into)[:, None]
    accepting = torch.tensor([last in nodes for nodes in todo] + [False])
    made = ByteAutomaton(following, accepting, 0).smallest()
    if len(made.accepting) > STATES:
        raise ValueError(f"it has {len(made.accepting)} states, and at most {STATES} are followed")
    return made


def alike(sets: Sequence[frozenset[int]]) -> list[list[int]]:
    """All bytes, those together that every set has or every set lacks."""
    several = [*dict.fromkeys(sets)]
    groups: dict[tuple[bool, ...], list[int]] = {}
    for byte in range(256):
        groups.setdefault(tuple(byte in each for each in several), []).append(byte)
    return [*groups.values()]
