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

    What fills them up leads nowhere and is reached from nowhere: each gives the bits that it gives
    alone.
    """

    class_of: Tensor  # int64 [K, V]
    following: Tensor  # int64 [K, S, C]
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
            class_of=torch.stack([one.class_of for one in automata]),
            following=following,
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
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, part in parts.items():
            whole = isinstance(part, Segments)
            parts[name] = part.of_rows(index) if whole else chosen(part, index)
        return Stack(**parts)


def filled(parts: Sequence[Tensor], value: int = 0) -> Tensor:
    """Parts of unlike lengths, int64 [n] each, as one [K, longest]."""
    return pad_sequence(list(parts), batch_first=True, padding_value=value)
