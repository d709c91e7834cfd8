"""Automata of several languages as one value, so that rows of each share forwards.

Shapes: K languages or R rows, S states, C classes, E edges, P pairs of states, V vocabulary, all
filled up to the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dlm.constraints.automaton import NEVER, Automaton
from dlm.constraints.segments import Segments, chosen


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """An automaton for each language, or for each row; `Automaton` says what its parts are.

    Tables of states, which may be large, lie behind each other as they are. What fills up the rest
    leads nowhere and is reached from nowhere: each gives the bits that it gives alone.
    """

    following: Tensor  # int64 [n], of all languages, each [S, C] of its own
    states: Tensor  # int64 [S], numbers up to the most
    classes: Tensor  # int64 [C], likewise
    begin: Tensor  # int64 [K], where the table of each begins
    width: Tensor  # int64 [K], its classes
    dead: Tensor  # int64 [K], the last of its states, from where nothing leads
    class_of: Tensor  # int64 [K, V]
    left: Tensor  # int64 [K, S]
    start: Tensor  # int64 [K]
    label: Tensor  # int64 [K, E], the class of each edge
    source: Tensor  # int64 [K, P], of each pair
    target: Tensor  # int64 [K, P]
    pair: Tensor  # int64 [K, E], of each edge
    by_pair: Segments
    by_label: Segments
    by_source: Segments
    by_target: Segments

    @classmethod
    def of(cls, automata: Sequence[Automaton]) -> "Stack":
        """Those of some languages of one vocabulary, at least one."""
        tables = [one.following for one in automata]
        sizes = torch.tensor([table.numel() for table in tables])
        return cls(
            following=torch.cat([table.flatten() for table in tables]),
            states=torch.arange(max(len(table) for table in tables)),
            classes=torch.arange(max(table.shape[1] for table in tables)),
            begin=sizes.cumsum(0) - sizes,
            width=torch.tensor([table.shape[1] for table in tables]),
            dead=torch.tensor([len(table) - 1 for table in tables]),
            class_of=torch.stack([one.class_of for one in automata]),
            left=filled([one.left for one in automata], NEVER),
            start=torch.tensor([one.start for one in automata]),
            label=filled([one.edges.label for one in automata]),
            source=filled([one.source for one in automata]),
            target=filled([one.target for one in automata]),
            pair=filled([one.pair for one in automata]),
            by_pair=Segments.stacked([one.by_pair for one in automata]),
            by_label=Segments.stacked([one.by_label for one in automata]),
            by_source=Segments.stacked([one.by_source for one in automata]),
            by_target=Segments.stacked([one.by_target for one in automata]),
        )

    def of_rows(self, index: Tensor) -> "Stack":
        """The automaton of each row, given which, int64 [R]."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[3:]}
        for name, part in parts.items():
            whole = isinstance(part, Segments)
            parts[name] = part.of_rows(index) if whole else chosen(part, index)
        return Stack(self.following, self.states, self.classes, **parts)

    def behind(self, state: Tensor) -> Tensor:
        """Where tokens of each class lead from the state of each row, int64 [R]: [R, C]."""
        width, dead = self.width[:, None], self.dead[:, None]
        place = (self.begin + state * self.width)[:, None] + self.classes.minimum(width - 1)
        return torch.where(self.classes < width, self.following[place], dead)

    def maps(self, tokens: Tensor) -> Tensor:
        """Where some tokens of each row, int64 [R, n], lead from every state: [R, n, S]."""
        label = self.class_of.gather(1, tokens)[..., None]
        begin, width, dead = (x[:, None, None] for x in (self.begin, self.width, self.dead))
        place = begin + self.states.minimum(dead) * width + label
        return torch.where(self.states <= dead, self.following[place], self.states)


def filled(parts: Sequence[Tensor], value: int = 0) -> Tensor:
    """Parts of unlike lengths, int64 [n] each, as one [K, longest]."""
    return pad_sequence(list(parts), batch_first=True, padding_value=value)
