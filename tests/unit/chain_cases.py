"""Rows in the midst of their decoding, with every text that they may become.

Shapes: W window, V vocabulary.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import build
from dlm.constraints.automaton import NEVER, Arrows, Automaton
from dlm.constraints.drawing import Asked, Joint
from dlm.kernels import Suppressed
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.places import Places
from dlm.window import locate

WORDS, MASK, EOS = range(5), 7, 6  # 5 is another stop token
ASKED = Asked(
    wanted={"confidence", "entropy", "margin", "token_probability"},
    law="model",
    draws=False,
    filters={},
    top=0,
    scale=None,
    scale_statistics=True,
    bonus=None,
)


def language(seed: int, spec: ModelSpec, states: int = 3) -> Automaton:
    """A random automaton over the words of the toy vocabulary that has a text."""
    for again in itertools.count():
        draw = torch.Generator().manual_seed(1000 * seed + again)
        table = torch.randint(0, states + 1, (states, len(WORDS)), generator=draw)
        source, label = (table < states).nonzero(as_tuple=True)
        accepting = torch.rand(states, generator=draw) < 0.5
        arrows = Arrows(source, label, table[source, label])
        made = Automaton.of(arrows, accepting, 0, spec)
        if made.left[0] < NEVER:
            return made
    raise AssertionError


def taken(automaton: Automaton, tokens: tuple[int, ...], behind: int) -> bool:
    """Whether a row that begins with these tokens may become a text."""
    state = automaton.start
    for token in tokens:
        state = int(automaton.following[state, automaton.class_of[token]])
    return int(automaton.left[state]) <= behind


@dataclass(frozen=True)
class Scene:
    """A row in the midst of its decoding, and every text that it may become."""

    automaton: Automaton
    tokens: list[int]  # the row
    first: int  # where the window begins
    width: int
    logits: Tensor  # [W, V]
    behind: int  # positions behind the window
    prompt: int = 0  # tokens that stand in the window in front of the row
    beyond: int = 0  # columns of the window behind the row
    never: tuple[int, ...] = ()  # tokens that are not sampled

    def weights(self, temperature: float) -> Iterator[tuple[tuple[int, ...], float]]:
        """ln of the weight of each text: of its tokens where the window is open."""
        width = self.width - self.prompt - self.beyond
        window = self.tokens[self.first : self.first + width]
        words = [word for word in (*WORDS, 5, EOS) if word not in self.never]
        some = [words if token == MASK else [token] for token in window]
        before = tuple(self.tokens[: self.first])
        for text in itertools.product(*some):
            if taken(self.automaton.without(self.never), before + text, self.behind):
                places = [i for i, token in enumerate(window) if token == MASK]
                total = sum(float(self.logits[self.prompt + i, text[i]]) for i in places)
                yield text, total / temperature

    def law(self, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
        """The probability of each text."""
        found = dict(self.weights(temperature))
        most = max(found.values())
        raised = {text: math.exp(value - most) for text, value in found.items()}
        return {text: value / sum(raised.values()) for text, value in raised.items()}

    def ask(
        self,
        asked: Asked,
        model: Model,
        rows: int = 1,
        temperature: float = 0.0,
        beside: Sequence[Automaton] = (),
    ) -> Any:
        """What `Joint` says of so many copies of the row, whose batch knows other languages."""
        spec, front = model.spec, [WORDS[1]] * self.prompt
        blank = [*front, *[MASK] * len(self.tokens)]
        made = build(
            [blank] * rows,
            mask_id=MASK,
            pad_id=WORDS[2],
            block_length=self.width,
            steps=None,
            row_keys=range(rows),
            seed=5,
            temperature=temperature,
            device=torch.device("cpu"),
            grid=self.width if self.prompt else None,
            columns=len(blank) + self.beyond,
        )
        row = [*front, *self.tokens, *[WORDS[2]] * self.beyond]
        canvas = replace(made, tokens=torch.tensor([row] * rows))
        window = locate(
            canvas,
            MASK,
            block=torch.full((rows,), self.first // self.width),
            hold=torch.ones(rows, dtype=torch.bool),
            block_length=self.width,
            width=self.width,
            cross_block=False,
            ahead=0,
        )
        progress: Any = SimpleNamespace(window=window, made=torch.zeros(rows, dtype=torch.int64))
        suppressed = torch.zeros(spec.vocab_size, dtype=torch.bool)
        suppressed[[MASK, *self.never]] = True
        here = self.automaton.without((*spec.banned, *self.never))
        joint = Joint([here, *beside], Suppressed.of(suppressed), cross_block=False)
        places = Places.all(torch.ones_like(window.masked), window.positions)
        logits = self.logits.repeat(rows, 1)
        return joint.statistics(logits, canvas, progress, places, asked)


def scene(seed: int, model: Model, width: int = 4, blocks: int = 2) -> Scene:
    """A random one of a random language: a text of which most is masked again."""
    automaton = language(seed, model.spec)
    draw = torch.Generator().manual_seed(seed)
    length = max(width * blocks, -(-int(automaton.left[0]) // width) * width)
    # Any text of the language, by a walk that can always end.
    state, tokens = automaton.start, []
    for place in range(length):
        behind = automaton.following[state, automaton.class_of]
        some = (automaton.left[behind] <= length - place - 1).nonzero()[:, 0]
        some = some[some != MASK]
        token = int(some[torch.randint(len(some), (1,), generator=draw)])
        tokens.append(token)
        state = int(behind[token])
    first = width * int(torch.randint(length // width, (1,), generator=draw))
    for place in range(first, length):
        if place >= first + width or torch.rand(1, generator=draw) < 0.7:
            tokens[place] = MASK
    logits = 2 * torch.randn(width, model.spec.vocab_size, generator=draw)
    return Scene(automaton, tokens, first, width, logits, length - first - width)
