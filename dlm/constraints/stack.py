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

    Tables of states, which may be large, stay those of the languages: of a row its number tells.
    What fills them up leads nowhere and is reached from nowhere: each gives the bits that it gives
    alone.
    """

    following: Tensor  # int64 [K, S, C], of the languages
    number: Tensor  # int64 [R], the language of each
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
        states, count = (max(one.following.shape[dim] for one in automata) for dim in (0, 1))
        following = torch.zeros(len(automata), states, count, dtype=torch.int64)
        for place, one in enumerate(automata):
            following[place, : one.following.shape[0], : one.following.shape[1]] = one.following
        return cls(
            following=following,
            number=torch.arange(len(automata)),
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
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        for name, part in parts.items():
            whole = isinstance(part, Segments)
            parts[name] = part.of_rows(index) if whole else chosen(part, index)
        return Stack(self.following, **parts)

    def behind(self, state: Tensor) -> Tensor:
        """Where tokens of each class lead from the state of each row, int64 [R]: [R, C]."""
        return self.following[self.number, state]

    def maps(self, tokens: Tensor) -> Tensor:
        """Where some tokens of each row, int64 [R, n], lead from every state: [R, n, S]."""
        return self.following.mT[self.number[:, None], self.class_of.gather(1, tokens)]


def filled(parts: Sequence[Tensor], value: int = 0) -> Tensor:
    """Parts of unlike lengths, int64 [n] each, as one [K, longest]."""
    return pad_sequence(list(parts), batch_first=True, padding_value=value)
