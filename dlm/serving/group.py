"""Rows of requests that are decoded together."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from dlm.batch import Change, Rows, Terms, denoise
from dlm.binding import bind, extent
from dlm.canvas import Canvas, active_length
from dlm.constraints.constraint import Constraint
from dlm.endings import ended, ongoing
from dlm.execution import STRIDE, Execution, power
from dlm.growth import Part, changed
from dlm.job import lay_out
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.prompt_cache import PromptCache
from dlm.runtime import Step
from dlm.serving.work import Ended, Event, Grown, Request, Reused, Tell, binds
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.trajectory import Likeliest, Written
from dlm.tree import equal

LARGE = 1 << 16
"""Most edges of an automaton whose rows share forward passes with those of others."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One row of a request."""

    name: int  # unique
    ticket: int  # of the request
    row: int  # of the request
    request: Request
    tell: Tell
    part: Part | None = None  # if blanks may grow: the row as it is now
    told: int | None = None  # likewise: the end of what was reported before its length changed

    @classmethod
    def of(
        cls, model: Model, name: int, ticket: int, row: int, request: Request, tell: Tell
    ) -> "Line":
        """Create a row before its first forward pass."""
        line = cls(name, ticket, row, request, tell)
        if request.growth is None:
            return line
        part = Part(row, line.key, request.rows[row], model.spec, request.growth)
        return replace(line, part=part)

    def is_of(self, ticket: int, row: int | None) -> bool:
        """Whether it is this row of this request, or any of its rows if `row` is None."""
        return self.ticket == ticket and row in (None, self.row)

    @property
    def key(self) -> int:
        """Key of its noise."""
        keys = self.request.settings.row_keys
        return self.row if keys is None else keys[self.row]

    @property
    def tokens(self) -> list[int]:
        """The tokens to decode, with masks."""
        return self.request.rows[self.row] if self.part is None else self.part.tokens

    @property
    def span(self) -> tuple[int, int]:
        """The part that is returned."""
        begin, end = self.request.spans[self.row]
        return begin, end + len(self.tokens) - len(self.request.rows[self.row])


@dataclass(frozen=True, slots=True)
class Laid:
    """A row that is laid out, and what it is decoded with."""

    line: Line
    canvas: Canvas
    reach: int | None  # most positions of its blocks; None if its length is fixed
    terms: Terms  # with a decoder that is not bound yet
    agreement: tuple[Any, ...]  # what rows decoded together have in common

    @classmethod
    def of(cls, model: Model, line: Line) -> "Laid":
        """Lay a row out.

        Windows are as wide as their blocks, even if the row ends before, because other rows share
        them. `one_block` bounds the width.

        Raises:
            ValueError: the row does not fit the model, or an option does not fit it.
        """
        settings = line.request.measured
        execution, key, grows = Execution.of(model), line.key, False
        if line.part is not None:
            key, grows = line.part.noise, line.part.grows
        if grows:
            model = replace(model, spec=model.spec.growing)
        canvas = lay_out(model, [line.tokens], settings, execution, [key])
        reach = None if line.part is None else canvas.reach(line.part.growth.most)
        decoder, span = settings.policy, canvas.span if reach is None else reach
        whole = one_block(span, model.spec)
        block_length = min(active_length(settings.block_length, model.spec) or whole, whole)
        traits = Traits.of(decoder)
        ahead = traits.ahead if block_length < whole else 0
        width = span if traits.cross_block else block_length * (1 + ahead)
        terms = Terms(model, settings, decoder, execution, block_length, width)
        bound_to: tuple[int, ...] = ()  # what binding the decoder depends on
        if binds(decoder):
            bound_to = *extent(canvas, block_length, reach), reach is not None
        shapes = (block_length, width, grows, alike(settings), *bound_to)
        return cls(line, canvas, reach, terms, (decoder, settings.of_steps, shapes))


def alike(settings: Settings) -> object:
    """What rows have to agree on with regard to constraints.

    Each row takes as much memory as the largest constraint of its batch needs. Rows with a large
    constraint are therefore decoded apart.
    """
    given = settings.constraint
    if isinstance(given, Constraint) and len(given.automaton.edges.label) > LARGE:
        return given.key
    return given is not None and not settings.mixes


def one_block(span: int, spec: ModelSpec) -> int:
    """Width of a block that holds a whole row: any longer block comes to the same.

    Only few widths occur, so that rows of one block each share forward passes. The width is never
    much more than the row needs: a request may ask for a block of any length, and windows take
    memory.

    Args:
        span: positions from the first block to the last blank.
        spec: facts of the model, whose positions bound the length of rows.
    """
    return min(max(power(span), STRIDE), spec.max_length)


@dataclass(slots=True, eq=False)
class Waiter:
    """A row that waits for its turn."""

    line: Line
    laid: Laid | None = None  # once it is laid out
    met: int = 0  # groups started by the time that all had refused it
    passed: int = 0  # rows that overtook it


class Group:
    """Rows that share their forward passes: some from the beginning, others join."""

    def __init__(
        self,
        first: Laid,
        say: Callable[[Line, Event], None],
        prompt_cache: PromptCache | None = None,
    ) -> None:
        """Start with one row; `say` reports events, `prompt_cache` keeps what rows leave.

        Raises:
            ValueError: the decoder was made for another model.
        """
        terms = first.terms
        self.agreement = first.agreement
        model = terms.model
        if first.line.part is not None:  # as in `Growing`, even if the row is full by now
            model = replace(model, spec=model.spec.growing)
        decoder = bind(terms.decoder, model, first.canvas, terms.block_length, first.reach)
        terms.settings.check_ranking(Traits.of(decoder))
        self.terms = replace(terms, decoder=decoder)
        self.traits = Traits.of(decoder)
        usable = prompt_cache is not None and prompt_cache.serves(terms.settings)
        self.prompt_cache = prompt_cache if usable else None
        self.say = say
        self.lines: dict[int, Line] = {}
        self.told: dict[int, int] = {}  # of followed rows: the end of what was reported
        # Of rows whose log-probabilities are reported.
        self.written = Written(terms.settings.return_top_tokens)
        self.joining: list[Laid] = []
        self.leaving: set[int] = set()
        self.moved: list[Line] = []  # rows whose length the last forward pass changed
        self.steps: Generator[Step, None, None] | None = None
        self.add(first)

    def accepts(self, laid: Laid) -> bool:
        """Whether a row may join."""
        return equal(self.agreement, laid.agreement)

    def add(self, laid: Laid) -> None:
        """Let a row join at the next forward pass."""
        self.lines[laid.line.name] = laid.line
        if laid.line.told is not None:
            self.told[laid.line.name] = laid.line.told
        self.joining.append(laid)

    def drop(self, line: Line) -> None:
        """Remove a row."""
        self.forget(line.name)
        before = len(self.joining)
        self.joining = [laid for laid in self.joining if laid.line is not line]
        if len(self.joining) == before:
            self.leaving.add(line.name)

    def forget(self, name: int) -> Line | None:
        """Stop reporting a row; returns it, if there is one of that name."""
        self.told.pop(name, None)
        self.written.forget(name)
        return self.lines.pop(name, None)

    def arrivals(self) -> Rows | None:
        """The rows that join now."""
        joining, self.joining = self.joining, []
        if not joining:
            return None
        canvas = Canvas.stack([laid.canvas for laid in joining], self.terms.model.spec.eos_id)
        names = [laid.line.name for laid in joining]
        languages = [laid.terms.settings.languages_of(1) or [None] for laid in joining]
        lengths = [len(laid.line.tokens) for laid in joining]
        return Rows(canvas, lengths, names, [one for (one,) in languages])

    def change(self) -> Change:
        """What changes between two forward passes."""
        leaving, self.leaving = frozenset(self.leaving), set()
        return Change(leaving, self.arrivals())

    def advance(self) -> None:
        """Run a forward pass and report it.

        Afterwards, `moved` holds the rows whose length it changed. They wait to be placed again.

        Raises:
            Exception: whatever the forward pass raises; no row can be decoded further then.
        """
        self.moved = []
        if self.steps is None:
            first = self.arrivals()
            assert first is not None
            self.steps = denoise(self.terms, first, self.change, self.prompt_cache)
        step = next(self.steps)
        if self.prompt_cache is not None:
            self.tell_reused(step)
        asked = {name for name, line in self.lines.items() if line.request.log_probabilities}
        self.written.add(step, asked)
        self.move(step)
        self.follow(step)
        for name, end in ended(step):
            if line := self.lines.get(name):
                tokens = end.tokens[slice(*line.span)]
                sure = self.told_of(line, line.span[0], tokens)
                self.forget(name)
                self.say(line, Ended(line.row, tokens, end.decoded, end.forwards, *sure))

    def move(self, step: Step) -> None:
        """Release rows whose length has changed, and report those that are complete."""
        growing = {name: line.part for name, line in self.lines.items() if line.part}
        if not growing:
            return
        spec = next(iter(growing.values())).spec
        gone = changed(step, spec) & growing.keys()
        for name, end in ended(step, gone):
            if name not in growing:
                continue
            line, told = self.lines[name], self.told.get(name)
            part = growing[name].after(end)
            self.forget(name)
            line = replace(line, part=part, told=told)
            if part.masks:
                self.moved.append(line)
            else:
                tokens, closed = part.tokens[slice(*line.span)], part.growth.most > 0
                counts = part.decoded, part.forwards
                self.say(line, Ended(line.row, tokens, *counts, closed=closed))
        self.leaving |= gone

    def tell_reused(self, step: Step) -> None:
        """Report reused tokens, for rows at their first forward pass."""
        for name, made, reused in zip(step.names, step.made, step.reused, strict=True):
            if made == 1 and reused and name in self.lines:
                line = self.lines[name]
                self.say(line, Reused(line.row, reused))

    def follow(self, step: Step) -> None:
        """Report what became final in rows that continue."""
        followed = {name for name, line in self.lines.items() if line.request.follow}
        for name, block_start, tokens in ongoing(step, followed):
            line = self.lines[name]
            begin, end = line.span
            mask_id = self.terms.model.spec.mask_id
            settled = self.traits.settled(tokens[:end], begin, block_start, mask_id)
            told = self.told.get(name, begin)
            if settled > told:
                self.told[name] = settled
                new = tokens[told:settled]
                self.say(line, Grown(line.row, new, *self.told_of(line, told, new)))

    def told_of(
        self, line: Line, begin: int, tokens: list[int]
    ) -> tuple[list[float] | None, list[Likeliest] | None]:
        """Log-probabilities of the tokens of a row from `begin` on, and the likeliest tokens there.

        Either is None if the request does not ask for it.
        """
        place = (line.name, begin, tokens)
        asked, count = line.request.log_probabilities, line.request.alternatives
        sure = self.written.log_probabilities(*place) if asked else None
        tops = self.written.top_tokens(*place) if count else None
        return sure, None if tops is None else [top[:count] for top in tops]

    def close(self) -> None:
        """Run no more forward passes."""
        if self.steps is not None:
            self.steps.close()
