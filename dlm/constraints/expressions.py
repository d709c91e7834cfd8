"""Regular expressions over bytes as trees, and the minimal automata that they compile to.

Shapes: S states.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from dlm.constraints.language import STATES, ByteAutomaton

RAW = 2 * STATES
"""Most states before minimisation."""
NODES = 1 << 18
"""Most nodes of the nondeterministic automaton. Each copy of a repeated part has its own nodes."""
WORK = 1 << 22
"""Most nodes visited by the subset construction, worth some seconds: each state of 16 KB of schema
can be a set of a thousand nodes. Schemas in real use take a tenth of it."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """One byte out of a set."""

    bytes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Series:
    """A concatenation; without parts, the empty text."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """An alternation; without parts, it matches nothing."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A repetition of one part, between `least` and `most` times."""

    part: "Expression"
    least: int = 0
    most: int | None = None  # None for no limit


@dataclass(frozen=True, slots=True)
class Joined:
    """One or more copies of a part, with a separator between them."""

    part: "Expression"
    between: "Expression"


@dataclass(frozen=True, slots=True)
class Picked:
    """A non-empty subsequence of parts, with separators; parts marked True must be included."""

    parts: tuple[tuple["Expression", bool], ...]
    between: "Expression"


Expression = OneOf | Series | Either | Repeated | Joined | Picked


def series(*parts: Expression) -> Expression:
    """A concatenation."""
    return Series(parts)


def either(*parts: Expression) -> Expression:
    """An alternation."""
    return Either(parts)


def maybe(part: Expression) -> Expression:
    """An optional part."""
    return Repeated(part, 0, 1)


def span(first: int, last: int) -> Expression:
    """A byte in an inclusive range."""
    return OneOf(frozenset(range(first, last + 1)))


def signs(letters: str) -> Expression:
    """One of the given ASCII characters."""
    return OneOf(frozenset(letters.encode("ascii")))


BYTES: Final = tuple(OneOf(frozenset({byte})) for byte in range(256))
"""An expression for each single byte, shared by all literal texts."""


def text(letters: str) -> Expression:
    """A literal text."""
    return Series(tuple(BYTES[byte] for byte in letters.encode()))


def nodes_of(expression: Expression) -> int:
    """How many nodes `Net.add` creates for an expression, or one less."""
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
    """A nondeterministic automaton (Thompson 1968) under construction."""

    free: list[list[int]] = field(default_factory=list)  # edges from each node that consume no byte
    taken: list[tuple[frozenset[int], int] | None] = field(default_factory=list)
    work: int = 0  # nodes visited so far

    def node(self) -> int:
        """Add a node.

        Raises:
            ValueError: the limit on nodes is reached.
        """
        if len(self.free) >= NODES:
            raise ValueError(f"it has more than {NODES} parts")
        self.free.append([])
        self.taken.append(None)
        return len(self.free) - 1

    def add(self, expression: Expression, begin: int) -> int:
        """Add an expression after node `begin`; returns the node at its end."""
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
        """Add the copies of a repeated part; returns the node at their end."""
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
        """Add parts that may be left out; returns the node at their end.

        Each place in the sequence has one node, whichever part came before it. Copying the rest of
        the sequence for each part that may come first would square the number of states.
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
        """The epsilon closure of some nodes, reduced to nodes that consume a byte or end the text.

        Raises:
            ValueError: the limit on visited nodes is exceeded.
        """
        todo = [*nodes]
        found = set(todo)
        for node in todo:  # the list grows in the loop
            more = [each for each in self.free[node] if each not in found]
            found.update(more)
            todo += more
        self.spend(len(todo))
        return tuple(sorted(node for node in found if self.taken[node] or not self.free[node]))

    def spend(self, nodes: int) -> None:
        """Count visited nodes. Time is not measured: a refusal must not depend on the machine.

        Raises:
            ValueError: the limit on visited nodes is exceeded.
        """
        self.work += nodes
        if self.work > WORK:
            raise ValueError(f"it takes more than {WORK} steps to follow")

    def behind(
        self, nodes: Iterable[int], places: Mapping[frozenset[int], Sequence[int]]
    ) -> dict[int, tuple[int, ...]]:
        """The closed set of nodes after each byte group, for the groups that lead anywhere.

        Args:
            nodes: the nodes of a state.
            places: the byte groups that make up each set of bytes.
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
        # Groups in the same sets lead to the same nodes; in a string, most groups do.
        reached: dict[tuple[frozenset[int], ...], tuple[int, ...]] = {}
        for sets in map(tuple, ways.values()):
            if sets not in reached:
                reached[sets] = self.closed(set().union(*(targets[some] for some in sets)))
        return {place: reached[tuple(sets)] for place, sets in sorted(ways.items())}


def automaton_of(expression: Expression) -> ByteAutomaton:
    """The minimal automaton of an expression, by subset construction.

    Raises:
        ValueError: it takes too many nodes, states or visits, or the nesting is too deep.
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
    for nodes in todo:  # the list grows in the loop
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
    """Partition all bytes: two bytes are in one group if the same sets contain them."""
    several = [*dict.fromkeys(sets)]
    groups: dict[tuple[bool, ...], list[int]] = {}
    for byte in range(256):
        groups.setdefault(tuple(byte in each for each in several), []).append(byte)
    return [*groups.values()]
