"""The denoising loop: the only place that calls the model, samples and writes tokens.

Shapes: B rows, L canvas, W window (the active block of each row), V vocabulary.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dlm import lookahead
from dlm.blame import Peaks
from dlm.cache import Cache
from dlm.canvas import Canvas
from dlm.constraints.constraint import Constraint
from dlm.contract import Violation, check_state, gain, rules
from dlm.deciding import Deciding
from dlm.execution import Execution
from dlm.host import Mailbox
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.kernels.canvas import Stops
from dlm.measure import Measured, Meter, ids
from dlm.models.model import Model
from dlm.opening import Opening
from dlm.progress import ForwardPlan, Progress, Scope, Tally, going_along
from dlm.report import After, Report
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import AnyDecoder, Decision, StepView
from dlm.window import Window, locate, padded, rows, write


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one step, all of it on the device."""

    before: Canvas  # as the forward pass saw it
    canvas: Canvas  # after writing
    progress: Progress
    view: StepView
    decision: Decision
    report: Tensor  # int64, what the host needs to know: `Report`
    peaks: Peaks  # of the logits of every branch


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the rows still being decoded, and what it changed.

    Its tensors are valid until the next step is requested.
    """

    number: int  # forward passes of the batch before this one
    before: Canvas  # as the forward pass saw it
    tokens: Tensor  # int64 [B, L], after writing
    view: StepView
    decision: Decision
    tally: Tally  # totals of all forward passes so far
    names: list[int]  # identify the rows: their index in the first batch, unless they joined
    made: list[int]  # forward passes of each row, including this one
    forwards: Tensor  # int64 [B], the same on the device, for live rows
    reused: list[int]  # tokens of each row taken from a prompt cache
    live: list[bool]  # rows that were being decoded; ignore the others
    done: list[bool]  # live rows that need no further forward pass


def no_listener(step: Step) -> None:
    """The callback that ignores steps."""


def listener(tell: Callable[[Step], object] | None) -> Callable[[Step], object]:
    """The callback for steps; None becomes one that ignores them.

    Raises:
        ValueError: it is not callable.
    """
    if not (tell is None or callable(tell)):
        raise ValueError(f"tell must be a function that takes a step, or None, got {tell!r}")
    return tell or no_listener


class Loop:
    """Runs the steps of canvases of one shape, with fixed options."""

    def __init__(
        self,
        model: Model,
        decoder: AnyDecoder,
        settings: Settings,
        execution: Execution,
        block_length: int,
        width: int,
        languages: Sequence[Constraint | None] = (),
    ) -> None:
        """Take the positions of a block and of a window, and the constraints of the rows."""
        if execution.lanes is not None:  # lanes must not keep the network alive
            model = replace(model, network=weakref.proxy(model.network))
        self.decoder = decoder
        self.traits = Traits.of(decoder)
        self.static = execution.static
        self.meter = Meter(
            *(model, self.traits, settings, languages),
            block_length=block_length,
            dense=self.static,
        )
        self.refreshes, self.horizon = self.meter.forward.refreshes, self.meter.horizon
        self.decide = Deciding(decoder, self.traits, self.meter)
        self.opening = Opening(self.decide, block_length, width, static=execution.static)
        self.settings = settings
        self.spec = model.spec
        self.block_length = block_length
        self.width = width
        self.stops = self.stops_of(ids(model.spec.stop_ids, model.device))
        # With block attention, the cache holds final keys and values, and rows need no refresh.
        self.exact = self.spec.block_size is not None and settings.caching != "none"
        self.mailbox = Mailbox()
        self.report = Report(
            (Violation.NAN, *rules(self.traits), Violation.BOUND),
            self.refreshes,
            self.opening,
            caching=settings.caching != "none",
            sees=self.horizon.window is not None,
        )

    def stops_of(self, stop_ids: Tensor) -> Stops:
        """The rule by which one of these tokens ends a row."""
        settled: Literal["token", "block", "row"] = "token"
        if self.traits.cross_block:
            settled = "row"
        elif self.traits.mutates_committed:
            settled = "block"
        return Stops(stop_ids if self.settings.stop_at_eos else None, self.spec.eos_id, settled)

    def start(
        self, canvas: Canvas, lengths: Sequence[int], kept: Tensor | None = None
    ) -> tuple[Progress, ForwardPlan]:
        """The state before the first forward pass; caches have the first `kept` columns of rows."""
        (batch, width), device = canvas.tokens.shape, canvas.tokens.device
        blanks, most = canvas.blanks, self.traits.max_forwards
        bound = (blanks if most is None else most(blanks, canvas.budget)).sum(-1)
        with device:
            state = self.decoder.init_state(batch, self.width)
        check_state(state, batch, self.traits.name)
        block = torch.full((batch,), -1, device=device)
        none, never = torch.zeros_like(block), block > 0
        window = self.locate(canvas, block, never)
        path = none.double() if self.meter.keeps_path else None
        tally = Tally(none, none, path)
        kept = none if kept is None else kept
        guess = None
        if self.traits.branches > 1:
            top = min(self.meter.top, self.spec.vocab_size)
            guess = lookahead.nothing(window, self.traits.branches, top)
        since = self.refreshes.begin(batch, device)
        scopes = self.refreshes.scopes(none, since)
        open_ = None if self.traits.open is None else none
        fresh = self.refreshes.fresh(window, window)
        progress = Progress(
            *(state, window, never, never, none, none, scopes, since, kept, bound, tally),
            *(guess, open_, fresh),
        )
        progress = self.opening(canvas, progress)
        seen = self.horizon.seen(canvas, progress)
        reach = int(self.refreshes.reach(seen, progress))
        columns = self.width
        if progress.open is not None:
            columns = self.opening.whole(int(self.opening.most(progress)))
        whole = Scope.WINDOW if self.exact else Scope.ROW
        tails = list(lengths)
        if self.refreshes.counts:
            tails = (canvas.length - canvas.origin).tolist()
        plan = ForwardPlan(list(lengths), tails, [whole] * batch, reach, columns, None)
        if self.horizon.window is not None:
            plan = replace(plan, sees=seen.length.tolist())
        return progress, self.packed(plan, width)

    def follow(self, other: "Loop", index: Tensor, count: int, first: int, canvas: Canvas) -> None:
        """Take over the caches of another loop, for rows that continue here.

        Args:
            other: what made the forward passes so far.
            index: int64, rows of its canvas that continue.
            count: number of rows of its canvas.
            first: the row here where they begin, one after the other.
            canvas: the rows here.
        """
        (rows, columns), each = canvas.tokens.shape, self.traits.branches
        index, shape = lookahead.lines_of(index, each), (rows * each, columns)
        theirs = other.meter.forward
        self.meter.forward.follow(theirs, index, count * each, first * each, shape)

    def packed(self, plan: ForwardPlan, width: int) -> ForwardPlan:
        """Add the packing of its rows, on a canvas of `width` columns.

        It includes every branch, unless branches are equal.
        """
        seen, copies = plan.seen(), 1 if plan.alike else self.traits.branches
        packing = self.meter.forward.packing(seen.lengths, seen.across or width, copies)
        return replace(plan, packing=packing)

    def room(self, canvas: Canvas) -> Cache:
        """The KV cache for the rows of a canvas, with all branches."""
        rows, columns = canvas.tokens.shape
        return self.meter.forward.room(rows * self.traits.branches, columns)

    @property
    def size(self) -> int:
        """Bytes of the KV cache and of the constraints' tables."""
        kept = (self.meter.forward.cache, self.meter.joint)
        return sum(part.size for part in kept if part is not None)

    def locate(self, canvas: Canvas, block: Tensor, hold: Tensor) -> Window:
        """The window of each row, given its block so far."""
        return locate(
            canvas,
            self.spec.mask_id,
            block=block,
            hold=hold,
            block_length=self.block_length,
            width=self.width,
            cross_block=self.traits.cross_block,
            ahead=self.traits.ahead,
        )

    def step(self, canvas: Canvas, progress: Progress, plan: ForwardPlan) -> Outcome:
        """Run the network, decide, write. The host waits for nothing, and needs only `plan`."""
        progress = progress.narrow(plan.width)
        decided = self.decide(canvas, progress, plan)
        seen, decision, broken = decided.seen, decided.decision, decided.broken
        if self.static:
            decision = decision.without(progress.done)
        drawn = write(canvas.tokens, seen.view, decision, self.spec.mask_id)
        hold = torch.zeros_like(progress.done) if decision.hold is None else decision.hold
        tokens, over = self.stop(self.closed(drawn, canvas), canvas, progress.window, hold)
        finished = over | progress.done
        after = replace(canvas, tokens=tokens)
        tally = progress.tally.plus(
            gain(decision),
            seen.queries.masked_fill(progress.done, 0),
            self.path(seen, decision, tokens, drawn),
        )
        going = self.advance(after, progress, decided.state, hold, finished, tally)
        if progress.guess is not None:
            tried = lookahead.tried(seen.view, decision, self.traits.branches)
            going = replace(going, guess=tried)
        # Finished rows are exempt; a row that is dropped has not finished.
        broken[Violation.BOUND] = (going.bound <= going.made).masked_fill(finished, False).any()
        return Outcome(
            before=canvas,
            canvas=after,
            progress=going,
            view=seen.view,
            decision=decision,
            report=self.report.write(After(broken, after, self.horizon.seen(after, going), going)),
            peaks=seen.peaks,
        )

    def advance(
        self,
        canvas: Canvas,
        progress: Progress,
        state: object,
        hold: Tensor,
        done: Tensor,
        tally: Tally,
    ) -> Progress:
        """The state after a forward pass."""
        window = self.locate(canvas, progress.window.block, hold)
        stayed = window.block == progress.window.block
        spent = torch.where(stayed, progress.spent + 1, 0)
        kept = progress.kept
        if self.exact or self.refreshes.answer_every:
            kept = self.refreshes.kept(canvas, progress.window.start, spent)
        since, scopes = self.refreshes.since(progress), progress.scopes
        if self.settings.caching != "none" and not self.exact:
            scopes = self.refreshes.scopes(spent, since)
        going = replace(
            progress,
            state=state,
            window=window,
            hold=hold,
            done=done,
            spent=spent,
            made=progress.made + 1,
            scopes=scopes,
            since=since,
            kept=kept,
            tally=tally,
            guess=None,  # set at the end of the step
            fresh=self.refreshes.fresh(progress.window, window),
        )
        return self.opening(canvas, going)

    def read(
        self, outcome: Outcome, plan: ForwardPlan
    ) -> tuple[list[Violation], list[bool], ForwardPlan]:
        """Rules broken, rows done and what is due next: the one wait for the device."""
        told = self.report.read(self.mailbox.read(outcome.report), len(plan.lengths))
        scopes, width = plan.scopes, plan.width
        if "scopes" in told.numbers and not self.exact:
            scopes = going_along([Scope(each) for each in told.numbers["scopes"]], told.done)
        if "most" in told.numbers:
            width = self.opening.whole(told.one("most", 0))
        reach, spared = told.one("reach", plan.reach), told.one("spared", 0)
        if (scopes, reach, width, spared) != (plan.scopes, plan.reach, plan.width, plan.spared):
            plan = replace(plan, scopes=scopes, reach=reach, width=width, spared=spared)
        alike = not told.one("tries", 0) and self.shares(plan.scope)
        sees = told.numbers.get("sees", plan.sees)
        if (alike, sees) != (plan.alike, plan.sees):
            width = outcome.canvas.tokens.shape[1]
            plan = self.packed(replace(plan, alike=alike, sees=sees), width)
        return told.broken, told.done, plan

    def shares(self, scope: Scope | None) -> bool:
        """Whether one branch of each row stands for all, as long as none tries anything.

        This holds for all rows or for none. If a block's keys are approximate, each branch keeps
        its own until all of them are recomputed.

        Args:
            scope: what is computed of all rows; None if they differ.
        """
        anew = scope is not None and (self.exact or scope is not Scope.WINDOW)
        return anew or self.traits.branches == 1

    def path(
        self, seen: Measured, decision: Decision, tokens: Tensor, drawn: Tensor
    ) -> Tensor | None:
        """Sum of ln q over committed tokens, float64 [B]; NaN in rows whose end was filled.

        Those are the rows whose `tokens` differ from `drawn`.
        """
        if seen.log_probability is None:
            return None
        chosen = seen.log_probability.double().masked_fill(~decision.commit, 0.0)
        # The order of a plain sum depends on the padding; that of `cumsum` does not, on a GPU up to
        # 32 columns.
        total = chosen.cumsum(-1)[:, -1]
        return total.masked_fill((tokens != drawn).any(-1), torch.nan)

    def closed(self, tokens: Tensor, canvas: Canvas) -> Tensor:
        """Fill masks after a stop token with end of text, if `pad_after_eos` is on."""
        ids = self.stops.ids
        if ids is None or not self.settings.pad_after_eos:
            return tokens
        return padded(tokens, canvas, ids, self.spec.eos_id, self.spec.mask_id)

    def stop(
        self, tokens: Tensor, canvas: Canvas, window: Window, hold: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fill rows after a final stop token with end of text, and tell which rows are done.

        When a stop token is final depends on the decoder:

        - usually, once nothing to its left is masked;
        - if the decoder may change committed tokens, once their block is finished;
        - if it may reach back to earlier blocks, only when the row is done.
        """
        by = fused_canvas if fused_canvas.covers(tokens) else plain
        written, mask_id = rows(canvas, tokens), self.spec.mask_id
        told: tuple[Tensor, Tensor] = by.stop(
            written, window.start, hold, mask_id, self.block_length, self.stops
        )
        return told
