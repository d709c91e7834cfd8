"""Rows that are decoded together: they leave when they are done, and others may join them.

Shapes: B rows.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dlm.blame import culprits
from dlm.canvas import Canvas, active_length
from dlm.constraints.constraint import Constraint
from dlm.contract import Violation
from dlm.execution import Execution
from dlm.host import send
from dlm.lanes import Lane, Workspace
from dlm.models.model import Model
from dlm.progress import Due, Progress, going_along
from dlm.prompt_cache import PromptCache
from dlm.runtime import Loop, Outcome, Step
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.tree import kinds, stacked
from dlm.types import AnyDecoder


@dataclass(frozen=True, slots=True)
class Terms:
    """What rows that are decoded together have in common."""

    model: Model
    settings: Settings
    decoder: AnyDecoder  # bound to the model
    execution: Execution  # how steps are run
    block_length: int  # positions that may be committed at a time
    width: int  # W, positions of a window

    @classmethod
    def of(
        cls,
        model: Model,
        settings: Settings,
        decoder: AnyDecoder,
        execution: Execution,
        span: int,
    ) -> "Terms":
        """Those of rows with at most `span` positions from the first block to the last blank."""
        block_length = active_length(settings.block_length, model.spec) or span
        traits = Traits.of(decoder)
        width = span if traits.cross_block else min(block_length * (1 + traits.ahead), span)
        return cls(model, settings, decoder, execution, block_length, width)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to decode, laid out."""

    canvas: Canvas  # with at least one blank in each
    lengths: Sequence[int]  # tokens of each
    names: Sequence[int]  # what a step calls them
    languages: Sequence[Constraint | None] = ()  # what each text is of; empty where all are free


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a batch between two forwards."""

    leave: frozenset[int] = frozenset()  # names of rows that are given up
    join: Rows | None = None  # on the same terms


NO_CHANGE = Change()


def unchanged() -> Change:
    """Nothing happens to the batch."""
    return NO_CHANGE


def denoise(
    terms: Terms,
    rows: Rows,
    change: Callable[[], Change] = unchanged,
    prompt_cache: PromptCache | None = None,
) -> Generator[Step, None, None]:
    """Fill every blank, block by block, one yield a forward.

    Rows are independent: each has its own active block, and leaves the batch when it is done.
    Every forward commits more than it remasks, or the decoder declares how many forwards a block
    may take at most: either way the loop is bounded. Once a step the host reads one report of it;
    where steps are not recorded it waits once more, for the number of columns to measure. It also
    reads the rows that leave something in a prompt cache. Whoever looks for texts of `stop` in a
    step waits for its tokens.

    Args:
        terms: of all rows, those that join included.
        rows: to begin with.
        change: asked after every forward. Where a cache is kept the first forward of rows that
            join is theirs alone, as it computes them from end to end; it is asked after that, too.
        prompt_cache: what rows take from and leave to others, with a cache and without guidance.

    Raises:
        ValueError: the decoder broke its contract, or the network returned NaN: of which row, and
            at which of its forwards, counted from 0. No row goes on.
        ChildProcessError: a process that has a part of the model has ended.
    """
    leader = terms.model.leader
    return (alone if leader is None else leader.denoise)(terms, rows, change, prompt_cache)


def alone(
    terms: Terms, rows: Rows, change: Callable[[], Change], prompt_cache: PromptCache | None
) -> Generator[Step, None, None]:
    """`denoise` in this process."""
    network = terms.model.network
    with terms.execution.lane(network) as lane:
        batch = Batch(terms, lane, rows, prompt_cache)
        while True:
            try:
                yield batch.step()
            except GeneratorExit:  # all rows are given up
                batch.leave(batch.live)
                raise
            now = change()
            batch.drop(now.leave)
            while now.join is not None:
                # A lane of their own: what is kept in the other one is in use.
                with terms.execution.lane(network, beside=lane) as other:
                    more, now = Batch(terms, other, now.join, prompt_cache), NO_CHANGE
                    if terms.settings.caching != "none" or not batch.is_like(more):
                        try:
                            yield more.step()
                        except GeneratorExit:
                            batch.leave(batch.live)
                            more.leave(more.live)
                            raise
                        now = change()
                        batch.drop(now.leave)
                        more.drop(now.leave)
                    batch.take(more)
                    del more
            if not any(batch.live):
                return
            batch.shrink()


class Batch:
    """Rows between two forwards."""

    def __init__(
        self, terms: Terms, lane: Lane, rows: Rows, prompt_cache: PromptCache | None = None
    ) -> None:
        """Take rows on the terms of all, and what is kept of other batches."""
        self.terms = terms
        self.lane = lane
        keeps = prompt_cache is not None and prompt_cache.bytes  # 0: there was no room for any
        self.prompt_cache = prompt_cache if keeps else None
        self.names = list(rows.names)
        self.live = [True] * len(self.names)
        self.made = [0] * len(self.names)  # forwards of each row
        self.number = 0  # forwards of the batch
        self.languages = list(rows.languages or [None] * len(self.names))
        canvas = rows.canvas.with_blocks(terms.execution.blocks(rows.canvas.shape[-1]))
        canvas = self.numbered(canvas)
        self.work = self.workspace(canvas)
        self.canvas = self.work.lay(canvas)
        self.reused = [0] * len(self.names)  # tokens of each row that others computed
        kept = self.recall()
        self.progress, due = self.work.loop.start(self.canvas, rows.lengths, kept)
        self.expect(due)

    def workspace(self, canvas: Canvas) -> Workspace:
        """What makes forwards of a canvas of this shape."""
        terms = self.terms
        options = (terms.execution, terms.block_length, terms.width, tuple(self.distinct))
        make = partial(Loop, terms.model, terms.decoder, terms.settings, *options)
        layout = (canvas.shape, terms.model.spec, *options[1:], terms.settings.of_steps)
        return self.lane.workspace(layout, terms.decoder, make)

    @property
    def distinct(self) -> list[Constraint | None]:
        """Languages of the rows, each once, in an order of their own; empty where all are free."""
        found = set(self.languages)
        return [] if found == {None} else sorted(found, key=lambda one: one.key if one else ())

    def numbered(self, canvas: Canvas) -> Canvas:
        """The same rows, which name their languages by their numbers."""
        number = {one: place for place, one in enumerate(self.distinct)}
        if not number:
            return canvas
        each = [number[one] for one in self.languages]
        return replace(canvas, language=send(each, canvas.tokens.device))

    def expect(self, due: Due) -> None:
        """Note what the next forward computes, and in which of few shapes it is asked for."""
        self.due = due
        self.asked = self.terms.execution.rounded(due, self.canvas.tokens.shape[1])

    def recall(self) -> Tensor | None:
        """Take over what is kept of what rows begin with; how many tokens, int64 [B]."""
        if self.prompt_cache is None:
            return None
        canvas, device = self.canvas, self.canvas.tokens.device
        origins = canvas.origin.tolist()  # of what comes behind keys and values are made anew
        rows = [row[:end] for row, end in zip(canvas.tokens.tolist(), origins, strict=True)]
        each = self.work.loop.traits.branches  # every branch has keys and values of its own
        rows = [row for row in rows for _ in range(each)]
        recall = partial(self.prompt_cache.recall, rows, partial(self.work.loop.room, canvas))
        used = [(self.lane, self.work)]
        self.reused = self.terms.execution.in_memory(used, device, recall, recall)[::each]
        return send(self.reused, device)

    def keep(
        self, prompt_cache: PromptCache, tokens: Tensor, progress: Progress, lines: list[int]
    ) -> None:
        """Leave what is final of some rows to others, given the tokens it was computed from."""
        if not lines:
            return
        ends, rows = progress.kept[lines].tolist(), tokens[lines].tolist()
        each = self.work.loop.traits.branches  # which are alike as far as they are final
        final = {line * each: row[:end] for line, row, end in zip(lines, rows, ends, strict=True)}
        prompt_cache.keep(self.work.loop.room(self.canvas), final)

    def step(self) -> Step:
        """One forward of all rows."""
        outcome = self.terms.execution.step(
            self.lane, self.work, self.canvas, self.progress, self.asked
        )
        broken, finished, due = self.work.loop.read(outcome, self.due)
        if broken:
            raise self.error(broken[0], outcome)
        live = self.live
        if self.prompt_cache is not None:
            known = finished if self.number else live  # prompts after their first forward
            lines = [line for line, goes in enumerate(live) if goes and known[line]]
            self.keep(self.prompt_cache, outcome.before.tokens, outcome.progress, lines)
        self.made = [count + 1 for count in self.made]
        made = Step(
            number=self.number,
            before=outcome.before,
            tokens=outcome.canvas.tokens,
            view=outcome.view,
            decision=outcome.decision,
            tally=outcome.progress.tally,
            names=self.names,
            made=self.made,
            forwards=outcome.progress.made,
            reused=self.reused,
            live=live,
            done=[was and over for was, over in zip(live, finished, strict=True)],
        )
        self.live = [was and not over for was, over in zip(live, finished, strict=True)]
        self.canvas, self.progress = outcome.canvas, outcome.progress
        if due is not self.due:
            self.expect(due)
        self.number += 1
        return made

    def error(self, rule: Violation, outcome: Outcome) -> ValueError:
        """What to raise where a step broke a rule: of which row, and at which of its forwards."""
        traits = self.work.loop.traits
        lines = 1 if self.asked.alike else traits.branches
        found = culprits(rule, outcome, traits, lines)
        found = [line for line in found if self.live[line]] or found
        where = f"forward {self.number}"
        if found:
            where = f"forward {self.made[found[0]]} of row {self.names[found[0]]}"
        if rule is Violation.NAN:
            return ValueError(f"{rule.value} at {where}")
        return ValueError(f"{traits.name} at {where}: {rule.value}")

    def drop(self, names: frozenset[int]) -> None:
        """Give rows up."""
        if names:
            self.leave([name in names for name in self.names])
            pairs = zip(self.live, self.names, strict=True)
            self.live = [was and name not in names for was, name in pairs]
            self.progress = self.only_live(self.progress)
            scopes = going_along(self.due.scopes, [not goes for goes in self.live])
            self.expect(replace(self.due, scopes=scopes))

    def leave(self, gone: Sequence[bool]) -> None:
        """Leave what rows that are given up have to others."""
        if self.prompt_cache is not None and self.number:
            pairs = enumerate(zip(self.live, gone, strict=True))
            lines = [line for line, (was, goes) in pairs if was and goes]
            self.keep(self.prompt_cache, self.canvas.tokens, self.progress, lines)

    def only_live(self, progress: Progress) -> Progress:
        """Nothing changes any more in rows that do not count."""
        idle = send(torch.tensor([not goes for goes in self.live]), progress.done.device)
        return replace(progress, done=progress.done | idle)

    def is_like(self, other: "Batch") -> bool:
        """Whether decoders' states can be put together: the first need not be like later ones."""
        one, two = (kinds(batch.progress.state) for batch in (self, other))
        return one == two

    def shrink(self) -> None:
        """Let rows go that need no further forward, as far as shapes may change."""
        stay = self.terms.execution.stay(self.live)
        if stay is not None:
            self.gather([(self, stay)], [self.live[line] for line in stay])

    def take(self, other: "Batch") -> None:
        """Let the rows of another batch join, and those that are done go."""
        if not any(other.live):
            return  # their first forward was all they needed
        here, there = (
            [line for line, goes in enumerate(batch.live) if goes] for batch in (self, other)
        )
        count = len(here) + len(there)
        spare = self.terms.execution.places(count) - count  # for copies of a row, never looked at
        live = [True] * len(here) + [False] * spare + [True] * len(there)
        self.gather([(self, here + [0] * spare), (other, there)], live)

    def gather(self, parts: Sequence[tuple["Batch", list[int]]], live: list[bool]) -> None:
        """Go on with some rows of several batches, of which those count that are `live`."""
        terms, device = self.terms, self.canvas.tokens.device
        batches = [batch for batch, _ in parts]
        lines: list[int] = []
        above = 0
        for batch, some in parts:
            lines += [above + line for line in some]
            above += len(batch.live)
        index = send(lines, device)
        due = Due.stack([batch.due.select(some) for batch, some in parts])
        due = replace(due, scopes=going_along(due.scopes, [not goes for goes in live]))
        canvas = Canvas.stack([batch.canvas for batch in batches], terms.model.spec.eos_id)
        columns = terms.execution.columns(max(due.lengths), canvas.tokens.shape[1])
        canvas = canvas.select(index, columns)
        progress = stacked([batch.progress for batch in batches]).select(index, columns)
        self.languages = [batch.languages[line] for batch, some in parts for line in some]
        canvas = self.numbered(canvas)
        work = self.workspace(canvas)
        canvas, loop, first = work.lay(canvas), work.loop, 0
        used = [(self.lane, work), *((batch.lane, batch.work) for batch in batches)]
        for batch, some in parts:
            index, count = send(some, device), len(batch.live)
            follow = partial(loop.follow, batch.work.loop, index, count, first, canvas)
            if batch.work is work:  # rows change places: a second time would be one too many
                follow()
            else:
                terms.execution.in_memory(used, device, follow, follow)
            first += len(some)
        self.names = [batch.names[line] for batch, some in parts for line in some]
        self.made = [batch.made[line] for batch, some in parts for line in some]
        self.reused = [batch.reused[line] for batch, some in parts for line in some]
        self.work, self.canvas, self.live = work, canvas, live
        self.progress = self.only_live(progress)
        alike = due.alike and loop.shares(due.scope)
        self.expect(loop.packed(replace(due, alike=alike), columns))
