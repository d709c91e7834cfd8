"""Equivalent states of an automaton, by Hopcroft's algorithm (1971): move the smaller part.

Shapes: S states, C byte classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.constraints.lists import Lists


def kinds_of(letters: Tensor, accepting: Tensor) -> Tensor:
    """The equivalence class of each state, int64 [S].

    The result relies on hashes, sums of random words, so the caller must verify it.

    Args:
        letters: int64 [S, C], the next state after each byte class.
        accepting: bool [S].
    """
    parts, dirty = Parts.of(letters, accepting), torch.arange(len(letters))
    while len(dirty):
        dirty = parts.split(dirty)
    return parts.kind


@dataclass(slots=True)
class Parts:
    """A partition of the states, refined until all states of a class have equivalent transitions.

    The part that is split off gets the new name and is never the larger one, so a state is renamed
    at most log S times. With E edges, all splits together visit E log S edges; comparing all states
    again in each round would take S times E.
    """

    into: Lists  # edges as `source * C + byte class`, grouped by target state
    kind: Tensor  # int64 [S], class of each state
    mark: Tensor  # int64 [S], hash of each state's transitions
    size: Tensor  # int64 [S], states of each class
    names: Tensor  # int64 [S], a random word for each class of states
    words: Tensor  # int64 [C], a random word for each byte class
    count: int  # classes of states so far

    @classmethod
    def of(cls, letters: Tensor, accepting: Tensor) -> "Parts":
        """The initial partition: accepting states and all others."""
        states, classes = letters.shape
        generator = torch.Generator().manual_seed(0)
        names, words = (
            torch.randint(-(1 << 62), 1 << 62, (n,), generator=generator)
            for n in (max(states, 2), classes)
        )
        words |= 1
        kind = accepting.long()
        return cls(
            into=Lists.grouped(letters.flatten(), states),
            kind=kind,
            mark=(words * names[kind[letters]]).sum(1),
            size=kind.bincount(minlength=max(states, 2)),
            names=names,
            words=words,
            count=2,
        )

    def split(self, dirty: Tensor) -> Tensor:
        """Split classes by the hashes of their states; returns states whose hashes changed.

        Args:
            dirty: states whose hash may have changed; all other states of a class share one hash.
        """
        dirty = self.filled(dirty)
        dirty = dirty[self.mark[dirty].argsort(stable=True)]
        dirty = dirty[self.kind[dirty].argsort(stable=True)]
        both = torch.stack((self.kind[dirty], self.mark[dirty]))
        (kind, _), whose, sizes = both.unique_consecutive(
            dim=1, return_inverse=True, return_counts=True
        )
        moves = self.moving(kind, sizes)
        names = torch.zeros_like(kind)
        many = int(moves.sum())
        names[moves] = torch.arange(self.count, self.count + many)
        self.count += many
        self.size.index_add_(0, kind[moves], -sizes[moves])
        self.size[names[moves]] = sizes[moves]
        some = moves[whose]
        return self.rename(dirty[some], names[whose[some]])

    def filled(self, dirty: Tensor) -> Tensor:
        """`dirty`, plus the rest of each class of which it holds more than half.

        Adding the rest lets `split` move it instead, as it is the smaller part.
        """
        some = self.kind[dirty].bincount(minlength=len(self.size))
        rest = self.size - some
        few = (rest > 0) & (rest < some)
        if not few.any():
            return dirty
        clean = few[self.kind]
        clean[dirty] = False
        return torch.cat((dirty, clean.nonzero()[:, 0]))

    def moving(self, kind: Tensor, sizes: Tensor) -> Tensor:
        """Which groups of states get a new name, bool: all but the largest part of each class.

        Args:
            kind: class of each group, in ascending order.
            sizes: states of each group.
        """
        old, whose = kind.unique_consecutive(return_inverse=True)
        largest = torch.zeros_like(old).scatter_reduce(0, whose, sizes, "amax")
        rest = self.size[old].index_add(0, whose, -sizes)
        place = torch.arange(len(kind))
        # Among groups of equal size, the last.
        place = torch.where(sizes == largest[whose], place, -1)
        keeps = torch.zeros_like(old).scatter_reduce(0, whose, place, "amax")
        moves = torch.ones_like(kind, dtype=torch.bool)
        moves[keeps[rest == 0]] = False
        return moves

    def rename(self, states: Tensor, names: Tensor) -> Tensor:
        """Give states new names; returns the states with an edge to them."""
        change = self.names[names] - self.names[self.kind[states]]
        self.kind[states] = names
        edges, whose = self.into.of(states)
        source, label = edges // len(self.words), edges % len(self.words)
        self.mark.index_add_(0, source, self.words[label] * change[whose])
        behind: Tensor = source.unique()
        return behind
