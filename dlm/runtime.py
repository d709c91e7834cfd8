"""The denoising loop: the only place that calls the model, samples and writes tokens.

Shapes: B rows, L canvas, W window (the active block of each row), N positions that need a
prediction, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.contract import Violation, violations
from dlm.kernels import NoiseKey, TokenStatistics, token_statistics, uniform
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.types import AnyDecoder, Decision, StepView, may_mutate, needs_of


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of the rows still being decoded, and what it changed."""

    number: int  # forwards made before this one
    before: Canvas  # what the forward saw
    tokens: Tensor  # int64 [B, L], after writing
    view: StepView
    decision: Decision
    done: list[bool]  # rows that need no further forward


def denoise(
    model: Model, canvas: Canvas, lengths: Sequence[int], settings: Settings
) -> Iterator[Step]:
    """Fill every blank, block by block, one yield a forward.

    Rows are independent: each has its own active block, and leaves the batch when it is done.
    Every forward commits at least one position of every row, so the most blanks of a row bound
    the loop.

    Args:
        model: the network and the facts of its family.
        canvas: rows with at least one blank each.
        lengths: real length of each row, tokens.
        settings: the policy, how to sample and when to stop.

    Raises:
        ValueError: the decoder broke its contract, or the network returned NaN.
    """
    lengths = list(lengths)
    batch, width = canvas.tokens.shape
    decoder = settings.policy()
    block_length = settings.block_length or width
    state = decoder.init_state(batch, width)
    plan = Plan(model, decoder, settings, block_length)
    block = torch.full((batch,), -1, device=canvas.tokens.device)
    spent = torch.zeros_like(block)
    for number in range(int(canvas.blank.sum(-1).max())):
        window = locate(canvas, model.spec.mask_id, block_length)
        spent = torch.where(window.block == block, spent, 0)
        block = window.block
        view, finite = plan.view(canvas, lengths, window, spent, number)
        state, decision = decoder.step(state, view)
        broken = {Violation.NAN: ~finite, **violations(decision, view, decoder)}
        tokens = write(canvas.tokens, view, decision, model.spec.mask_id)
        tokens, finished = plan.stop(tokens, canvas)
        report = torch.cat((torch.stack(list(broken.values())), finished)).tolist()
        for name, bad in zip(broken, report, strict=False):
            if bad:
                raise ValueError(f"{type(decoder).__name__} at forward {number}: {name.value}")
        done = report[len(broken) :]
        yield Step(number, canvas, tokens, view, decision, done)
        spent = spent + 1
        canvas = replace(canvas, tokens=tokens)
        if any(done):
            stay = [i for i, over in enumerate(done) if not over]
            if not stay:
                return
            lengths = [lengths[i] for i in stay]
            index = torch.tensor(stay, device=block.device)
            canvas = canvas.select(index, max(lengths))
            state = select_rows(state, index)
            block, spent = block[index], spent[index]
    raise AssertionError("a row kept a blank though every forward committed one")


@dataclass(frozen=True, slots=True)
class Window:
    """The active block of each row: the one that holds its first mask."""

    block: Tensor  # int64 [B]
    start: Tensor  # int64 [B], canvas position of column 0
    positions: Tensor  # int64 [B, W], clamped to the canvas
    tokens: Tensor  # int64 [B, W]
    masked: Tensor  # bool [B, W]
    editable: Tensor  # bool [B, W], blanks of this block, committed or not
    limit: Tensor  # int64 [B], forwards this block may take, 0 for no limit


def locate(canvas: Canvas, mask_id: int, block_length: int) -> Window:
    """Gather the active block of each row at its own offset."""
    open_ = canvas.blank & (canvas.tokens == mask_id)
    first = open_.int().argmax(-1)
    block = (first - canvas.start) // block_length
    start = canvas.start + block * block_length
    width = min(block_length, canvas.tokens.shape[1])
    columns = start[:, None] + torch.arange(width, device=start.device)
    inside = columns < canvas.stop[:, None]
    positions = columns.clamp(max=canvas.tokens.shape[1] - 1)
    return Window(
        block=block,
        start=start,
        positions=positions,
        tokens=canvas.tokens.gather(1, positions),
        masked=open_.gather(1, positions) & inside,
        editable=canvas.blank.gather(1, positions) & inside,
        limit=canvas.budget.gather(1, block[:, None])[:, 0],
    )


class Plan:
    """What one generation does at every forward, fixed at its start."""

    def __init__(
        self, model: Model, decoder: AnyDecoder, settings: Settings, block_length: int
    ) -> None:
        device = model.device
        self.model = model
        self.settings = settings
        self.needs = needs_of(decoder) | (
            {"confidence"} if settings.return_trajectory else frozenset()
        )
        self.statistics = self.needs - {"uniform", "logits"}
        self.block_length = block_length
        self.mutates = may_mutate(decoder)
        self.stop_ids = ids(model.spec.stop_ids, device)
        self.begin = ids(settings.begin_suppress_tokens, device)
        self.suppressed = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=device)
        self.suppressed[ids((*model.spec.banned, *settings.suppress_tokens), device)] = True
        self.wordless = self.suppressed.index_fill(0, self.stop_ids, True)

    def view(
        self, canvas: Canvas, lengths: list[int], window: Window, spent: Tensor, number: int
    ) -> tuple[StepView, Tensor]:
        """Forward, project and measure just the positions the decoder reads.

        Returns:
            The view, and a bool scalar: whether every logit it rests on was finite.
        """
        wanted = window.masked
        if self.mutates or "token_probability" in self.needs:
            wanted = window.editable
        if "logits" in self.needs:
            wanted = torch.ones_like(window.masked)
        row, column = wanted.nonzero(as_tuple=True)
        position = window.positions[row, column]
        logits = self.logits(canvas, lengths, row, position)
        key = NoiseKey(
            self.settings.seed, canvas.row_key[row], position, torch.full_like(row, number)
        )
        measured = self.measure(logits, window.tokens[row, column], key)

        def spread(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            shape = (*window.masked.shape, *values.shape[1:])
            return values.new_zeros(shape).index_put_((row, column), values)

        sampled = spread(measured.sampled)
        assert sampled is not None
        left = window.limit - spent
        masks = window.masked.sum(-1)
        quota = torch.where(window.limit > 0, -(-masks // left.clamp(min=1)), 1)
        view = StepView(
            tokens=window.tokens,
            masked=window.masked,
            sampled=sampled,
            positions=window.positions,
            block_start=window.start,
            step=spent,
            quota=quota,
            editable=window.editable & ~window.masked,
            confidence=spread(measured.confidence),
            margin=spread(measured.margin),
            entropy=spread(measured.entropy),
            token_probability=spread(measured.token_probability),
            uniform=spread(uniform(key)) if "uniform" in self.needs else None,
            logits=spread(logits.masked_fill(self.suppressed, -torch.inf))
            if "logits" in self.needs
            else None,
        )
        return view, measured.maximum.isfinite().all()

    def logits(self, canvas: Canvas, lengths: list[int], row: Tensor, position: Tensor) -> Tensor:
        """Logits [N, V] at the positions asked for, guided, first-position bans applied."""
        tokens = canvas.tokens
        batch, width = tokens.shape
        columns = torch.arange(width, device=tokens.device)
        valid = None
        if min(lengths) < width:
            ends = torch.tensor(lengths, device=tokens.device)
            valid = columns < ends[:, None]
        scale = self.settings.cfg_scale
        if scale:
            # The unconditional row is the same canvas without what was given.
            blind = tokens.masked_fill(~canvas.blank, self.model.spec.mask_id)
            tokens = torch.cat((tokens, blind))
            valid = None if valid is None else torch.cat((valid, valid))
        hidden = self.model.hidden(tokens, columns[None], valid).to(tokens.device)
        logits = self.model.logits(hidden[row, position]).to(tokens.device)
        if scale:
            free = self.model.logits(hidden[row + batch, position]).to(tokens.device)
            logits = free + (scale + 1) * (logits - free)
        if self.begin.numel():
            first = (position == canvas.start[row])[:, None]
            logits[:, self.begin] = logits[:, self.begin].masked_fill(first, -torch.inf)
        return logits

    def measure(self, logits: Tensor, tokens: Tensor, key: NoiseKey) -> TokenStatistics:
        """Sample, and measure what the decoder reads."""
        options = self.settings
        last = options.confidence_eos_eot_inf
        drawn = token_statistics(
            logits,
            () if last else self.statistics,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            suppressed=self.suppressed,
            tokens=tokens,
            key=key,
        )
        return self.rank_stops_last(logits, drawn) if last else drawn

    def rank_stops_last(self, logits: Tensor, drawn: TokenStatistics) -> TokenStatistics:
        """Measure as if stop tokens did not exist; a position that drew one is the least sure."""
        ranked = token_statistics(
            logits,
            self.statistics | {"token_probability"},
            suppressed=self.wordless,
            tokens=drawn.sampled,
        )
        ends = self.wordless[drawn.sampled]
        margin, entropy = ranked.margin, ranked.entropy
        return replace(
            ranked,
            sampled=drawn.sampled,
            maximum=drawn.maximum,
            confidence=ranked.token_probability,
            margin=None if margin is None else margin.masked_fill(ends, 0.0),
            entropy=None
            if entropy is None
            else entropy.masked_fill(ends, math.log(logits.shape[-1])),
            token_probability=None,
        )

    def stop(self, tokens: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Fill rows behind a final stop token with end of text, and tell which rows are done.

        A stop token is final once nothing left of it is masked; where the decoder may still
        change committed tokens, once its whole block is committed.
        """
        open_ = canvas.blank & (tokens == self.model.spec.mask_id)
        done = ~open_.any(-1)
        if not self.settings.stop_at_eos:
            return tokens, done
        width = tokens.shape[1]
        first_open = torch.where(done, width, open_.int().argmax(-1))
        if self.mutates:
            into = (first_open - canvas.start) % self.block_length
            first_open = torch.where(done, width, first_open - into)
        ends = canvas.blank & torch.isin(tokens, self.stop_ids)
        first_end = torch.where(ends.any(-1), ends.int().argmax(-1), width)
        over = first_end < first_open
        columns = torch.arange(width, device=tokens.device)
        behind = canvas.blank & over[:, None] & (columns > first_end[:, None])
        return tokens.masked_fill(behind, self.model.spec.eos_id), done | over


def write(tokens: Tensor, view: StepView, decision: Decision, mask_id: int) -> Tensor:
    """Apply commits, then edits, then remasks, to a new canvas."""
    change, fresh = decision.commit, view.sampled
    if decision.edit is not None:
        change = change | decision.edit
    if decision.remask is not None:
        change = change | decision.remask
        fresh = fresh.masked_fill(decision.remask, mask_id)
    # Gathering into the canvas, not scattering from the window: the columns of a short last
    # block lie beyond the row, and no canvas position asks for them.
    width = change.shape[1]
    column = torch.arange(tokens.shape[1], device=tokens.device) - view.block_start[:, None]
    inside = (column >= 0) & (column < width)
    column = column.clamp(0, width - 1)
    return torch.where(inside & change.gather(1, column), fresh.gather(1, column), tokens)


def ids(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Token ids as an index, int64 [n]."""
    return torch.tensor(tokens, dtype=torch.int64, device=device)


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
