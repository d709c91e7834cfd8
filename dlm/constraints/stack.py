"""Automata of several languages in one value, so that rows with different ones share a batch.

Shapes: K languages or R rows, S states, C classes, E edges, P pairs of states, V vocabulary, all
padded to the largest.
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
    """One automaton for each language, or for each row; see `Automaton` for the fields.

    Transition tables, which may be large, are concatenated without padding. All else is padded with
    entries that lead nowhere and cannot be reached, so each language gives the same bits as alone.
    """

    following: Tensor  # int64 [n], all tables [S, C] of all languages, each of its own size
    states: Tensor  # int64 [S], 0 .. S - 1 for the largest S
    classes: Tensor  # int64 [C], 0 .. C - 1 for the largest C
    begin: Tensor  # int64 [K], offset of each language's table
    width: Tensor  # int64 [K], classes of each language
    dead: Tensor  # int64 [K], its dead state, which is its last
    class_of: Tensor  # int64 [K, V]
    left: Tensor  # int64 [K, S]
    start: Tensor  # int64 [K]
    label: Tensor  # int64 [K, E], the class of each edge
    source: Tensor  # int64 [K, P], source state of each pair
    target: Tensor  # int64 [K, P], target state of each pair
    pair: Tensor  # int64 [K, E], the pair of each edge
    by_pair: Segments
    by_label: Segments
    by_source: Segments
    by_target: Segments

    @classmethod
    def of(cls, automata: Sequence[Automaton]) -> "Stack":
        """Stack the automata of one or more languages over one vocabulary."""
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
        """Select the automaton of each row by index, int64 [R]."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[3:]}
        for name, part in parts.items():
            whole = isinstance(part, Segments)
            parts[name] = part.of_rows(index) if whole else chosen(part, index)
        return Stack(self.following, self.states, self.classes, **parts)

    def behind(self, state: Tensor) -> Tensor:
        """The next state for each class from the state of each row, int64 [R]: [R, C]."""
        width, dead = self.width[:, None], self.dead[:, None]
        place = (self.begin + state * self.width)[:, None] + self.classes.minimum(width - 1)
        return torch.where(self.classes < width, self.following[place], dead)

    def maps(self, tokens: Tensor) -> Tensor:
        """The map over all states of each token, int64 [R, n]: [R, n, S]."""
        label = self.class_of.gather(1, tokens)[..., None]
        begin, width, dead = (x[:, None, None] for x in (self.begin, self.width, self.dead))
        place = begin + self.states.minimum(dead) * width + label
        return torch.where(self.states <= dead, self.following[place], self.states)


def filled(parts: Sequence[Tensor], value: int = 0) -> Tensor:
    """Pad int64 vectors of different lengths [n] to one [K, longest]."""
    return pad_sequence(list(parts), batch_first=True, padding_value=value)
