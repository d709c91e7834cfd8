"""The denoising loop: the only place that calls the model, samples and writes tokens.

Shapes: B rows, L canvas, W window (the active block of each row), V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.contract import Violation, violations
from dlm.forward import Due
from dlm.measure import Measured, Meter, background, ids
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import AnyDecoder, Decision, Facts, StepView
from dlm.window import Window, locate, write


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of the rows still being decoded, and what it changed."""

    number: int  # forwards made before this one
    before: Canvas  # what the forward saw
    tokens: Tensor  # int64 [B, L], after writing
    view: StepView
    decision: Decision
    log_probability: Tensor | None  # float64 [B], ln q of what was committed, where it has a path
    queries: Tensor  # int64 [B], positions the network was evaluated at
    done: list[bool]  # rows that need no further forward


def bind(decoder: AnyDecoder, model: Model, canvas: Canvas, block_length: int | None) -> AnyDecoder:
    """The decoder made ready for one model and one canvas.

    Raises:
        ValueError: it was made for another model.
    """
    ready = getattr(decoder, "bind", None)
    if ready is None:
        return decoder
    facts = Facts(
        blocks=canvas.blanks.shape[1],
        block_length=min(block_length or canvas.span, canvas.span),
        vocab_size=model.spec.vocab_size,
        mask_id=model.spec.mask_id,
        device=model.device,
        background=lambda: background(model),
    )
    bound: AnyDecoder = ready(facts)
    return bound


def denoise(
    model: Model, canvas: Canvas, lengths: Sequence[int], settings: Settings, decoder: AnyDecoder
) -> Iterator[Step]:
    """Fill every blank, block by block, one yield a forward.

    Rows are independent: each has its own active block, and leaves the batch when it is done.
    Every forward commits more than it remasks, or the decoder declares how many forwards a block
    may take at most: either way the loop is bounded.

    Args:
        model: the network and the facts of its family.
        canvas: rows with at least one blank each.
        lengths: real length of each row, tokens.
        settings: how to sample and when to stop.
        decoder: the policy, bound to the model.

    Raises:
        ValueError: the decoder broke its contract, or the network returned NaN.
    """
    loop = Loop(model, decoder, settings, canvas)
    progress = loop.start(canvas)
    due = Due(list(lengths), [True] * len(lengths), 0)
    for number in range(int(progress.bound.max())):
        state, seen, decision, broken = loop.decide(canvas, progress, due, number)
        drawn = write(canvas.tokens, seen.view, decision, model.spec.mask_id)
        spent = progress.spent
        hold = torch.zeros_like(spent, dtype=torch.bool) if decision.hold is None else decision.hold
        tokens, finished = loop.stop(drawn, canvas, progress.window, hold)
        broken[Violation.BOUND] = (~finished & (progress.bound <= number + 1)).any()
        after = replace(canvas, tokens=tokens)
        progress = loop.advance(after, progress, state, hold)
        rules, done, due = loop.report(broken, finished, after, progress, due)
        for rule, bad in zip(broken, rules, strict=True):
            if bad:
                raise ValueError(f"{loop.traits.name} at forward {number}: {rule.value}")
        path = loop.path(seen, decision, (tokens != drawn).any(-1))
        yield Step(number, canvas, tokens, seen.view, decision, path, seen.queries, done)
        canvas = after
        if any(done):
            stay = [i for i, over in enumerate(done) if not over]
            if not stay:
                return
            canvas, progress, due = loop.select(canvas, progress, due, stay)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where each row stands between two forwards."""

    state: Any  # of the decoder
    window: Window  # what may change at the next forward
    hold: Tensor  # bool [B], whether the row stays in its block
    spent: Tensor  # int64 [B], forwards made on it
    bound: Tensor  # int64 [B], most forwards the row may take in all


class Loop:
    """What every forward of one generation does, fixed at its start."""

    def __init__(
        self, model: Model, decoder: AnyDecoder, settings: Settings, canvas: Canvas
    ) -> None:
        self.decoder = decoder
        self.traits = Traits.of(decoder)
        self.meter = Meter(model, self.traits, settings)
        self.settings = settings
        self.spec = model.spec
        self.length = canvas.tokens.shape[1]
        self.block_length = settings.block_length or self.length
        span = canvas.span
        self.width = span if self.traits.cross_block else min(self.block_length, span)
        self.stop_ids = ids(model.spec.stop_ids, canvas.tokens.device)

    def start(self, canvas: Canvas) -> Progress:
        """Before the first forward."""
        batch, device = canvas.tokens.shape[0], canvas.tokens.device
        blanks = canvas.blanks
        if self.traits.max_forwards is not None:
            blanks = self.traits.max_forwards(blanks, canvas.budget)
        with device:
            state = self.decoder.init_state(batch, self.width)
        block = torch.full((batch,), -1, device=device)
        hold = block > 0
        window = self.locate(canvas, block, hold)
        return Progress(state, window, hold, torch.zeros_like(block), blanks.sum(-1))

    def locate(self, canvas: Canvas, block: Tensor, hold: Tensor) -> Window:
        """The window of each row, given the block it has been in."""
        return locate(
            canvas,
            self.spec.mask_id,
            block=block,
            hold=hold,
            block_length=self.block_length,
            width=self.width,
            cross_block=self.traits.cross_block,
        )

    def advance(self, canvas: Canvas, progress: Progress, state: Any, hold: Tensor) -> Progress:
        """After a forward."""
        window = self.locate(canvas, progress.window.block, hold)
        stayed = window.block == progress.window.block
        spent = torch.where(stayed, progress.spent + 1, 0)
        return Progress(state, window, hold, spent, progress.bound)

    def report(
        self,
        broken: Mapping[Violation, Tensor],
        finished: Tensor,
        canvas: Canvas,
        progress: Progress,
        due: Due,
    ) -> tuple[list[int], list[bool], Due]:
        """Rules broken, rows done and what the next forward computes: one wait for the device."""
        parts = [torch.stack(list(broken.values())), finished]
        if self.settings.cache != "none":
            every = self.settings.refresh_every
            spent = progress.spent
            parts += [spent == 0 if every is None else spent % every == 0]
            parts += [(canvas.length - progress.window.start).amax(0, keepdim=True)]
        told: list[int] = torch.cat([part.long() for part in parts]).tolist()
        rules, rest = told[: len(broken)], told[len(broken) :]
        count = len(due.lengths)
        done = [bool(flag) for flag in rest[:count]]
        if self.settings.cache == "none":
            return rules, done, due
        return rules, done, Due(due.lengths, [bool(x) for x in rest[count:-1]], rest[-1])

    def select(
        self, canvas: Canvas, progress: Progress, due: Due, stay: Sequence[int]
    ) -> tuple[Canvas, Progress, Due]:
        """The rows that go on."""
        index = torch.tensor(stay, device=canvas.tokens.device)
        self.meter.forward.select(index, canvas.tokens.shape[0])
        kept = Due([due.lengths[i] for i in stay], [due.refresh[i] for i in stay], due.reach)
        length = max(kept.lengths)
        going = Progress(
            select_rows(progress.state, index),
            progress.window.select(index, length),
            progress.hold[index],
            progress.spent[index],
            progress.bound[index],
        )
        return canvas.select(index, length), going, kept

    def decide(
        self, canvas: Canvas, progress: Progress, due: Due, number: int
    ) -> tuple[Any, Measured, Decision, dict[Violation, Tensor]]:
        """Forward and decide; the other way round where the decision rests on no logits.

        Returns:
            The decoder's state, the view measured, the decision and which rules it breaks.
        """
        state = progress.state
        view = self.meter.look(canvas, progress.window, progress.spent, number)
        if self.traits.order_only:
            state, decision = self.decoder.step(state, view)
            broken = violations(decision, view, self.traits)
            taken = decision.commit if decision.edit is None else decision.commit | decision.edit
            seen = self.meter.measure(canvas, due, view, taken, state, number)
        else:
            wanted = self.meter.wanted(view)
            seen = self.meter.measure(canvas, due, view, wanted, state, number)
            state, decision = self.decoder.step(seen.state, seen.view)
            broken = violations(decision, seen.view, self.traits)
        return state, seen, decision, {Violation.NAN: ~seen.finite, **broken}

    def path(self, seen: Measured, decision: Decision, filled: Tensor) -> Tensor | None:
        """Sum of ln q over what was committed, float64 [B]; NaN in rows whose end was filled."""
        if seen.log_probability is None:
            return None
        chosen = seen.log_probability.double().masked_fill(~decision.commit, 0.0)
        total = chosen.cumsum(-1)[:, -1]  # in order: a plain sum would depend on the padding
        return total.masked_fill(filled, torch.nan)

    def stop(
        self, tokens: Tensor, canvas: Canvas, window: Window, hold: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fill rows behind a final stop token with end of text, and tell which rows are done.

        A stop token is final once nothing left of it is masked; where the decoder may still
        change committed tokens, once their block is left behind; where it may reach back to
        earlier blocks, never before the row is done.
        """
        open_ = canvas.blank & (tokens == self.spec.mask_id)
        done = ~open_.any(-1) & ~hold
        if not self.settings.stop_at_eos:
            return tokens, done
        width = tokens.shape[1]
        final = torch.where(open_.any(-1), open_.int().argmax(-1), width)
        if self.traits.cross_block:
            final = canvas.start
        elif self.traits.mutates_committed:
            behind = final - (final - canvas.start) % self.block_length
            final = torch.where(hold, window.start, behind)
        final = torch.where(done, width, final)
        ends = canvas.blank & torch.isin(tokens, self.stop_ids)
        first_end = torch.where(ends.any(-1), ends.int().argmax(-1), width)
        over = first_end < final
        columns = torch.arange(width, device=tokens.device)
        behind = canvas.blank & over[:, None] & (columns > first_end[:, None])
        return tokens.masked_fill(behind, self.spec.eos_id), done | over


def select_rows(state: Any, index: Tensor) -> Any:
    """The rows `index` of a decoder state: None, a tensor, or a tuple of those."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state[index]
    if isinstance(state, tuple):
        parts = [select_rows(part, index) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    raise TypeError(f"decoder state must be None, a tensor or a tuple, got {type(state).__name__}")
