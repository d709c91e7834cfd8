"""A regular language as a deterministic automaton over the tokens of a vocabulary.

Shapes: S states, C token classes, E edges, P pairs of states, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm.constraints.segments import Segments
from dlm.models.spec import ModelSpec

NEVER = 1 << 40
"""Distance to the end of a text, in tokens, from states that cannot reach it."""
FEW, SOME, MANY = 4, 8, 16
"""Width of the reduction tables, by how many entries a group usually has."""
ENTRIES = 1 << 26
"""Most entries of `Automaton.following`; as int64 they take half a gigabyte."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrows:
    """Transitions, one entry for each, as parallel int64 tensors [n]."""

    source: Tensor
    label: Tensor  # a token or a token class
    target: Tensor

    def chosen(self, some: Tensor) -> "Arrows":
        """The transitions marked in bool [n]."""
        return Arrows(self.source[some], self.label[some], self.target[some])


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """States, and classes of tokens that have the same transitions from every state.

    The second-to-last state is the ended text. Every token leads from it to itself, as whatever
    follows a stop token is not part of the text. The last state is dead: no transition leaves it.
    """

    class_of: Tensor  # int64 [V]
    following: Tensor  # int64 [S, C], the next state after a token of each class
    left: Tensor  # int64 [S], fewest tokens to a complete text, without the stop token
    start: int
    edges: Arrows  # int64 [E] each, labelled by class, between states that can reach an end
    pair: Tensor  # int64 [E], the pair of states that each edge connects
    source: Tensor  # int64 [P], source state of each pair
    target: Tensor  # int64 [P], target state of each pair
    by_pair: Segments  # edges, by the pair of states they connect
    by_label: Segments  # edges, by their class
    by_source: Segments  # pairs, by their source state
    by_target: Segments  # pairs, by their target state
    by_class: Segments  # tokens, by their class

    @classmethod
    def of(cls, arrows: Arrows, accepting: Tensor, start: int, spec: ModelSpec) -> "Automaton":
        """Build the automaton from token transitions, and add stop tokens after complete texts.

        Args:
            arrows: transitions by tokens other than stop tokens.
            accepting: bool [n], states in which the text is complete.
            start: the state of the empty text.
            spec: of the model.

        Raises:
            ValueError: the transition table is too large.
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
        """The same language when these tokens are never sampled; distances to an end may grow."""
        alive = self.among(tokens)[self.edges.label]
        if alive.all():
            return self
        left = distances(self.edges.chosen(alive), self.left == 0)
        return replace(self, left=left)

    def among(self, tokens: Collection[int]) -> Tensor:
        """Classes that contain a token outside `tokens`, bool [C]."""
        kept = torch.ones(len(self.class_of), dtype=torch.bool)
        kept[list(tokens)] = False
        return torch.zeros(self.following.shape[1], dtype=torch.bool).index_fill_(
            0, self.class_of[kept], True
        )

    def least(self, first: Collection[int]) -> int:
        """Fewest tokens to a complete text whose first token is not in `first`."""
        behind = self.left[self.following[self.start]][self.among(first)]
        return min(int(behind.min()) + 1, NEVER) if first else int(self.left[self.start])


def everything(spec: ModelSpec) -> Automaton:
    """The automaton that accepts any text.

    Stop tokens have the same transitions as all others. So there is a single class, the constraint
    adds the same number to the logits of all tokens, and no distribution changes.
    """
    label = torch.arange(spec.vocab_size)
    nowhere = torch.zeros_like(label)
    free = replace(spec, stop_ids=())
    return Automaton.of(Arrows(nowhere, label, nowhere), torch.tensor([True]), 0, free)


def classes(arrows: Arrows, vocabulary: int) -> Tensor:
    """The class of each token, int64 [V]: tokens with the same transitions share one.

    Classes are found by hashing: each token's hash is the sum of a random word for each of its
    transitions. `prove` checks the result against the transitions.
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
    """Check the class table against the transitions of every token.

    Raises:
        RuntimeError: two tokens with different transitions share a class (a hash collision).
    """
    dead = following.shape[0] - 1
    same = torch.equal(following[arrows.source, class_of[arrows.label]], arrows.target)
    each = arrows.label.bincount(minlength=len(class_of))
    if not (same and torch.equal(each, (following != dead).sum(0)[class_of])):
        raise RuntimeError("two classes of tokens of an automaton had one mark")


def distances(edges: Arrows, whole: Tensor) -> Tensor:
    """Fewest edges from each state to a state marked in `whole`, bool [S]; int64 [S]."""
    left = torch.where(whole, 0, NEVER)
    while True:
        behind = (left[edges.target] + 1).clamp(max=NEVER)
        nearer = left.scatter_reduce(0, edges.source, behind, "amin")
        if torch.equal(nearer, left):
            return left
        left = nearer
