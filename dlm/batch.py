"""Continuous batching: finished rows leave the batch, and others may join.

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
from dlm.progress import ForwardPlan, Progress, going_along
from dlm.prompt_cache import PromptCache
from dlm.runtime import Loop, Outcome, Step
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.tree import kinds, stacked
from dlm.types import AnyDecoder


@dataclass(frozen=True, slots=True)
class Terms:
    """What all rows of a batch share."""

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
        """The terms of rows that span at most `span` positions, first block to last blank."""
        block_length = active_length(settings.block_length, model.spec) or span
        traits = Traits.of(decoder)
        width = span if traits.cross_block else min(block_length * (1 + traits.ahead), span)
        return cls(model, settings, decoder, execution, block_length, width)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to decode, laid out on a canvas."""

    canvas: Canvas  # at least one blank in each row
    lengths: Sequence[int]  # tokens of each row
    names: Sequence[int]  # identify the rows in each `Step`
    languages: Sequence[Constraint | None] = ()  # constraint of each row; empty if none has any


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a batch between two forward passes."""

    leave: frozenset[int] = frozenset()  # names of rows to drop
    join: Rows | None = None  # rows to add, on the same terms


NO_CHANGE = Change()


def unchanged() -> Change:
    """No change to the batch."""
    return NO_CHANGE


def denoise(
    terms: Terms,
    rows: Rows,
    change: Callable[[], Change] = unchanged,
    prompt_cache: PromptCache | None = None,
) -> Generator[Step, None, None]:
    """Fill every blank, block by block, yielding once per forward pass.

    Rows are independent: each has its own active block, and leaves the batch when it is done. The
    loop is bounded: either every forward pass commits more than it remasks, or the decoder declares
    how many passes a block may take at most.

    The host waits for the device:

    - once a step, to read one report of it;
    - once more a step if steps are not recorded, for the number of columns to measure;
    - to read the rows that leave something in a prompt cache;
    - for the tokens of a step that are searched for texts of `stop`.

    Args:
        terms: shared by all rows, including those that join.
        rows: the rows to begin with.
        change: asked after every forward pass. With a key-value cache, rows that join first get a
            forward pass of their own, as it computes them from end to end; `change` is asked after
            that one too.
        prompt_cache: keys and values that rows share across calls; used with a key-value cache and
            without guidance.

    Raises:
        ValueError: the decoder broke its contract, or the network returned NaN; names the row and
            its forward pass, counted from 0. All rows stop.
        ChildProcessError: a process that holds a part of the model has ended.
    """
    leader = terms.model.leader
    return (alone if leader is None else leader.denoise)(terms, rows, change, prompt_cache)


def alone(
    terms: Terms, rows: Rows, change: Callable[[], Change], prompt_cache: PromptCache | None
) -> Generator[Step, None, None]:
    """`denoise` within this process."""
    network = terms.model.network
    with terms.execution.lane(network) as lane:
        batch = Batch(terms, lane, rows, prompt_cache)
        while True:
            try:
                yield batch.step()
            except GeneratorExit:  # the caller dropped all rows
                batch.leave(batch.live)
                raise
            now = change()
            batch.drop(now.leave)
            while now.join is not None:
                # In a separate lane, as the workspace of the first one is in use.
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
    """The rows being decoded, between two forward passes."""

    def __init__(
        self, terms: Terms, lane: Lane, rows: Rows, prompt_cache: PromptCache | None = None
    ) -> None:
        """Lay out rows in a lane's workspace and take over what the prompt cache has of them."""
        self.terms = terms
        self.lane = lane
        keeps = prompt_cache is not None and prompt_cache.bytes  # 0: there was no memory for any
        self.prompt_cache = prompt_cache if keeps else None
        self.names = list(rows.names)
        self.live = [True] * len(self.names)
        self.made = [0] * len(self.names)  # forward passes of each row
        self.number = 0  # forward passes of the batch
        self.languages = list(rows.languages or [None] * len(self.names))
        canvas = rows.canvas.with_blocks(terms.execution.blocks(rows.canvas.shape[-1]))
        canvas = self.numbered(canvas)
        self.work = self.workspace(canvas)
        self.canvas = self.work.lay(canvas)
        self.reused = [0] * len(self.names)  # tokens of each row taken from the prompt cache
        kept = self.recall()
        self.progress, plan = self.work.loop.start(self.canvas, rows.lengths, kept)
        self.expect(plan)

    def workspace(self, canvas: Canvas) -> Workspace:
        """The workspace for a canvas of this shape, from the lane or new."""
        terms = self.terms
        options = (terms.execution, terms.block_length, terms.width, tuple(self.distinct))
        make = partial(Loop, terms.model, terms.decoder, terms.settings, *options)
        layout = (canvas.shape, terms.model.spec, *options[1:], terms.settings.of_steps)
        return self.lane.workspace(layout, terms.decoder, make)

    @property
    def distinct(self) -> list[Constraint | None]:
        """The distinct constraints of the rows, sorted by key; empty if no row has one."""
        found = set(self.languages)
        return [] if found == {None} else sorted(found, key=lambda one: one.key if one else ())

    def numbered(self, canvas: Canvas) -> Canvas:
        """The same canvas, with each row's constraint given by its index in `distinct`."""
        number = {one: place for place, one in enumerate(self.distinct)}
        if not number:
            return canvas
        each = [number[one] for one in self.languages]
        return replace(canvas, language=send(each, canvas.tokens.device))

    def expect(self, plan: ForwardPlan) -> None:
        """Set what the next forward pass computes, and the rounded shape to request."""
        self.plan = plan
        self.asked = self.terms.execution.rounded(plan, self.canvas.tokens.shape[1])

    def recall(self) -> Tensor | None:
        """Copy keys and values of the rows' prefixes from the prompt cache.

        Returns:
            How many tokens of each row were copied, int64 [B]; None without a prompt cache.
        """
        if self.prompt_cache is None:
            return None
        canvas, device = self.canvas, self.canvas.tokens.device
        origins = canvas.origin.tolist()  # keys and values from there on are recomputed
        rows = [row[:end] for row, end in zip(canvas.tokens.tolist(), origins, strict=True)]
        each = self.work.loop.traits.branches  # every branch has its own keys and values
        rows = [row for row in rows for _ in range(each)]
        recall = partial(self.prompt_cache.recall, rows, partial(self.work.loop.room, canvas))
        used = [(self.lane, self.work)]
        self.reused = self.terms.execution.in_memory(used, device, recall, recall)[::each]
        return send(self.reused, device)

    def keep(
        self, prompt_cache: PromptCache, tokens: Tensor, progress: Progress, lines: list[int]
    ) -> None:
        """Store the final tokens of the rows `lines` in the prompt cache.

        `tokens` are those their keys and values were computed from.
        """
        if not lines:
            return
        ends, rows = progress.kept[lines].tolist(), tokens[lines].tolist()
        each = self.work.loop.traits.branches  # branches agree on final tokens: keep the first
        final = {line * each: row[:end] for line, row, end in zip(lines, rows, ends, strict=True)}
        prompt_cache.keep(self.work.loop.room(self.canvas), final)

    def step(self) -> Step:
        """One forward pass of all rows."""
        outcome = self.terms.execution.step(
            self.lane, self.work, self.canvas, self.progress, self.asked
        )
        broken, finished, plan = self.work.loop.read(outcome, self.plan)
        if broken:
            raise self.error(broken[0], outcome)
        live = self.live
        if self.prompt_cache is not None:
            known = finished if self.number else live  # prompts, after the first forward pass
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
        if plan is not self.plan:
            self.expect(plan)
        self.number += 1
        return made

    def error(self, rule: Violation, outcome: Outcome) -> ValueError:
        """The exception for a step that broke a rule; names the row and its forward pass."""
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
        """Drop rows by name."""
        if names:
            self.leave([name in names for name in self.names])
            pairs = zip(self.live, self.names, strict=True)
            self.live = [was and name not in names for was, name in pairs]
            self.progress = self.only_live(self.progress)
            scopes = going_along(self.plan.scopes, [not goes for goes in self.live])
            self.expect(replace(self.plan, scopes=scopes))

    def leave(self, gone: Sequence[bool]) -> None:
        """Store what dropped rows have for the prompt cache."""
        if self.prompt_cache is not None and self.number:
            pairs = enumerate(zip(self.live, gone, strict=True))
            lines = [line for line, (was, goes) in pairs if was and goes]
            self.keep(self.prompt_cache, self.canvas.tokens, self.progress, lines)

    def only_live(self, progress: Progress) -> Progress:
        """Mark rows that are no longer live as done, so that nothing changes in them."""
        idle = send(torch.tensor([not goes for goes in self.live]), progress.done.device)
        return replace(progress, done=progress.done | idle)

    def is_like(self, other: "Batch") -> bool:
        """Whether both batches' decoder states can be stacked; a first state may differ in kind."""
        one, two = (kinds(batch.progress.state) for batch in (self, other))
        return one == two

    def shrink(self) -> None:
        """Remove finished rows, as far as shapes may change."""
        stay = self.terms.execution.stay(self.live)
        if stay is not None:
            self.gather([(self, stay)], [self.live[line] for line in stay])

    def take(self, other: "Batch") -> None:
        """Merge another batch into this one, removing finished rows."""
        if not any(other.live):
            return  # they finished in their first forward pass
        here, there = (
            [line for line, goes in enumerate(batch.live) if goes] for batch in (self, other)
        )
        count = len(here) + len(there)
        spare = self.terms.execution.places(count) - count  # copies of a row, never read
        live = [True] * len(here) + [False] * spare + [True] * len(there)
        self.gather([(self, here + [0] * spare), (other, there)], live)

    def gather(self, parts: Sequence[tuple["Batch", list[int]]], live: list[bool]) -> None:
        """Continue with the given rows of several batches; `live` tells which of them count."""
        terms, device = self.terms, self.canvas.tokens.device
        batches = [batch for batch, _ in parts]
        lines: list[int] = []
        above = 0
        for batch, some in parts:
            lines += [above + line for line in some]
            above += len(batch.live)
        index = send(lines, device)
        plan = ForwardPlan.stack([batch.plan.select(some) for batch, some in parts])
        plan = replace(plan, scopes=going_along(plan.scopes, [not goes for goes in live]))
        canvas = Canvas.stack([batch.canvas for batch in batches], terms.model.spec.eos_id)
        columns = terms.execution.columns(max(plan.lengths), canvas.tokens.shape[1])
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
            if batch.work is work:  # rows move in place, which a retry would repeat
                follow()
            else:
                terms.execution.in_memory(used, device, follow, follow)
            first += len(some)
        self.names = [batch.names[line] for batch, some in parts for line in some]
        self.made = [batch.made[line] for batch, some in parts for line in some]
        self.reused = [batch.reused[line] for batch, some in parts for line in some]
        self.work, self.canvas, self.live = work, canvas, live
        self.progress = self.only_live(progress)
        alike = plan.alike and loop.shares(plan.scope)
        self.expect(loop.packed(replace(plan, alike=alike), columns))
