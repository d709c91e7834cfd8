"""Which states of an automaton no text tells apart, by splitting the smaller part (Hopcroft 1971).

Shapes: S states, C classes of bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.constraints.lists import Lists


def kinds_of(letters: Tensor, accepting: Tensor) -> Tensor:
    """The kind of each state, int64 [S]: those of the same one are not told apart, if all is well.

    Told by sums of random words: whoever asks proves it.

    Args:
        letters: int64 [S, C], the state behind each class of bytes.
        accepting: bool [S].
    """
    parts, dirty = Parts.of(letters, accepting), torch.arange(len(letters))
    while len(dirty):
        dirty = parts.split(dirty)
    return parts.kind


@dataclass(slots=True)
class Parts:
    """Kinds of states, which are split until all of each lead to the same ones.

    A part that is split off has a new name and is no larger than what keeps the old one, so that a
    state has few names in its time: in all E log S of E edges are looked at, where comparing all
    states again for each step that tells some apart takes S times E.
    """

    into: Lists  # edges, source times C and class, by the state they lead to
    kind: Tensor  # int64 [S]
    mark: Tensor  # int64 [S], the sum of words of where a state leads
    size: Tensor  # int64 [S], states of each kind
    names: Tensor  # int64 [S], a word for each kind
    words: Tensor  # int64 [C], for each class
    count: int  # kinds

    @classmethod
    def of(cls, letters: Tensor, accepting: Tensor) -> "Parts":
        """Two kinds, of states that accept and those that do not."""
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
        """Split kinds by where their states lead; returns states that lead elsewhere for it.

        Args:
            dirty: states whose mark may have changed; of each kind all others lead alike.
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
        """These, and all others of a kind of which they are most: then the others move instead."""
        some = self.kind[dirty].bincount(minlength=len(self.size))
        rest = self.size - some
        few = (rest > 0) & (rest < some)
        if not few.any():
            return dirty
        clean = few[self.kind]
        clean[dirty] = False
        return torch.cat((dirty, clean.nonzero()[:, 0]))

    def moving(self, kind: Tensor, sizes: Tensor) -> Tensor:
        """Which groups of states get a new name, bool: all but the largest part of each kind.

        Args:
            kind: that each group has, in order.
            sizes: of each.
        """
        old, whose = kind.unique_consecutive(return_inverse=True)
        largest = torch.zeros_like(old).scatter_reduce(0, whose, sizes, "amax")
        rest = self.size[old].index_add(0, whose, -sizes)
        place = torch.arange(len(kind))
        # Of groups that are as large, the last.
        place = torch.where(sizes == largest[whose], place, -1)
        keeps = torch.zeros_like(old).scatter_reduce(0, whose, place, "amax")
        moves = torch.ones_like(kind, dtype=torch.bool)
        moves[keeps[rest == 0]] = False
        return moves

    def rename(self, states: Tensor, names: Tensor) -> Tensor:
        """Give states new names; returns states that lead to them."""
        change = self.names[names] - self.names[self.kind[states]]
        self.kind[states] = names
        edges, whose = self.into.of(states)
        source, label = edges // len(self.words), edges % len(self.words)
        self.mark.index_add_(0, source, self.words[label] * change[whose])
        behind: Tensor = source.unique()
        return behind
