"""A regular language as an automaton over the tokens of a vocabulary.

Shapes: S states, C classes of tokens, E edges, P pairs of states, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm.constraints.segments import Segments
from dlm.models.spec import ModelSpec

NEVER = 1 << 40
"""Tokens to the end of a text from where none leads there."""
FEW, SOME, MANY = 4, 8, 16
"""Numbers that are brought together at a time, by how many there usually are."""
ENTRIES = 1 << 26
"""Most entries of `Automaton.following`: half a gigabyte."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrows:
    """What leads from one state to another, an entry for each token that does, int64 [n] each."""

    source: Tensor
    label: Tensor  # a token, or a class of tokens
    target: Tensor

    def chosen(self, some: Tensor) -> "Arrows":
        """Those marked in bool [n]."""
        return Arrows(self.source[some], self.label[some], self.target[some])


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """States, and classes of tokens that lead alike from every one of them.

    The last but one state is that of an ended text: every token leaves it as it is, as what stands
    behind a stop token is no part of a text. Nothing leads out of the last one.
    """

    class_of: Tensor  # int64 [V]
    following: Tensor  # int64 [S, C], the state behind a token of each class
    left: Tensor  # int64 [S], fewest tokens to a whole text, the stop token not counted
    start: int
    edges: Arrows  # by classes, between states from which a text can be ended, int64 [E] each
    pair: Tensor  # int64 [E], which of all pairs of states each of them joins
    source: Tensor  # int64 [P], of each pair
    target: Tensor  # int64 [P]
    by_pair: Segments  # edges, by the pair of states they join
    by_label: Segments  # edges, by their class
    by_source: Segments  # pairs, by the state they leave
    by_target: Segments
    by_class: Segments  # tokens, by their class

    @classmethod
    def of(cls, arrows: Arrows, accepting: Tensor, start: int, spec: ModelSpec) -> "Automaton":
        """That of some states, with stop tokens behind whole texts.

        Args:
            arrows: by tokens that are no stop tokens.
            accepting: bool [n], states in which a text is whole.
            start: the state of no text.
            spec: of the model.

        Raises:
            ValueError: it is too large.
        """
        ended, dead = len(accepting), len(accepting) + 1
        stops = torch.tensor(spec.stop_ids, dtype=torch.int64)
        whole, every = accepting.nonzero()[:, 0], torch.arange(spec.vocab_size)
        source = whole.repeat_interleave(len(stops)), torch.full_like(every, ended)
        token = torch.cat((arrows.label, stops.repeat(len(whole)), every))
        target = torch.full((len(token),), ended)
        target[: len(arrows.target)] = arrows.target
        told = Arrows(torch.cat((arrows.source, *source)), token, target)
        class_of = classes(told, spec.vocab_size)
        count = int(class_of.max()) + 1
        if (dead + 1) * count > ENTRIES:
            raise ValueError(
                f"a constraint must have at most {ENTRIES} pairs of a state and a class of tokens, "
                f"got {dead + 1} states and {count} classes"
            )
        following = torch.full((dead + 1, count), dead)
        following[told.source, class_of[token]] = told.target
        prove(following, class_of, told)
        begin, label = (following != dead).nonzero(as_tuple=True)
        edges = Arrows(begin, label, following[begin, label])
        left = distances(edges, torch.cat((accepting, torch.tensor([True, False]))))
        edges = edges.chosen((left[edges.source] < NEVER) & (left[edges.target] < NEVER))
        states = dead + 1
        names, pair = torch.unique(edges.source * states + edges.target, return_inverse=True)
        source, target = names // states, names % states
        return cls(
            class_of=class_of,
            following=following,
            left=left,
            start=start,
            edges=edges,
            pair=pair,
            source=source,
            target=target,
            by_pair=Segments.of(pair, len(names), FEW),
            by_label=Segments.of(edges.label, count, MANY),
            by_source=Segments.of(source, states, SOME),
            by_target=Segments.of(target, states, SOME),
            by_class=Segments.of(class_of, count, MANY),
        )

    def without(self, tokens: Collection[int]) -> "Automaton":
        """The same where these tokens are never sampled: it may take more to end a text."""
        alive = self.among(tokens)[self.edges.label]
        if alive.all():
            return self
        left = distances(self.edges.chosen(alive), self.left == 0)
        return replace(self, left=left)

    def among(self, tokens: Collection[int]) -> Tensor:
        """Classes with a token that is none of these, bool [C]."""
        kept = torch.ones(len(self.class_of), dtype=torch.bool)
        kept[list(tokens)] = False
        return torch.zeros(self.following.shape[1], dtype=torch.bool).index_fill_(
            0, self.class_of[kept], True
        )

    def least(self, first: Collection[int]) -> int:
        """Fewest tokens to a whole text whose first one is none of these."""
        behind = self.left[self.following[self.start]][self.among(first)]
        return min(int(behind.min()) + 1, NEVER) if first else int(self.left[self.start])


def everything(spec: ModelSpec) -> Automaton:
    """What takes any text.

    Stop tokens lead where all others do: they are of one class, and what is told of its tokens is
    one number, which changes none of them.
    """
    label = torch.arange(spec.vocab_size)
    nowhere = torch.zeros_like(label)
    free = replace(spec, stop_ids=())
    return Automaton.of(Arrows(nowhere, label, nowhere), torch.tensor([True]), 0, free)


def classes(arrows: Arrows, vocabulary: int) -> Tensor:
    """The class of each token, int64 [V]: those with the same arrows have the same one.

    Told by the sum of a random word for each pair of states; `prove` holds it against the arrows.
    """
    generator = torch.Generator().manual_seed(0)
    count = int(torch.cat((arrows.source, arrows.target)).max()) + 1
    one, two = (torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator) for _ in range(2))
    word = (one[arrows.source] | 1) * two[arrows.target]
    word = (word ^ (word >> 29)) * 0x2545F4914F6CDD1D
    word ^= word >> 32
    marks = torch.zeros(vocabulary, dtype=torch.int64).index_add_(0, arrows.label, word)
    found: tuple[Tensor, Tensor] = torch.unique(marks, return_inverse=True)
    return found[1]


def prove(following: Tensor, class_of: Tensor, arrows: Arrows) -> None:
    """Hold a table of classes against the arrows of every token.

    Raises:
        RuntimeError: two tokens that lead elsewhere are in one class.
    """
    dead = following.shape[0] - 1
    same = torch.equal(following[arrows.source, class_of[arrows.label]], arrows.target)
    each = arrows.label.bincount(minlength=len(class_of))
    if not (same and torch.equal(each, (following != dead).sum(0)[class_of])):
        raise RuntimeError("two classes of tokens of an automaton had one mark")


def distances(edges: Arrows, whole: Tensor) -> Tensor:
    """Fewest edges from each state to one of those that are `whole`, bool [S]; int64 [S]."""
    left = torch.where(whole, 0, NEVER)
    while True:
        behind = (left[edges.target] + 1).clamp(max=NEVER)
        nearer = left.scatter_reduce(0, edges.source, behind, "amin")
        if torch.equal(nearer, left):
            return left
        left = nearer
