"""One evaluation of the network: whole rows, or the part of them that a cache leaves to compute.

Shapes: B rows, L canvas, W window, Q queries, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm.cache import Cache, Refresh, Reuse, View
from dlm.canvas import Canvas
from dlm.host import send
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.models.model import Model
from dlm.packing import Packed, Packing, worthwhile
from dlm.progress import Due, Progress, select_rows
from dlm.settings import Settings
from dlm.topology import Topology
from dlm.traits import Traits
from dlm.types import StepView


@dataclass(frozen=True, slots=True)
class Hidden:
    """Final hidden states; with guidance, those of the unconditional rows behind the others."""

    states: Tensor  # [B, L, D] at every position, or [B, W, D] at the columns of the window
    shadows: Tensor | None  # [B, W, D], of the masks beside the window
    by_column: bool
    queries: Tensor  # int64 [B], positions that were computed


@dataclass(frozen=True, slots=True)
class Stretch:
    """Columns of each row to compute."""

    begin: Tensor  # int64 [B]
    end: Tensor  # int64 [B], one past the last
    count: int  # queries, the same for all rows; those from `end` on are thrown away
    lead: int = 0  # of those, in front of the window; what lies in front of the row likewise


class Forward:
    """Forwards of rows of one number and length, with what they leave behind for the next ones."""

    def __init__(self, model: Model, traits: Traits, settings: Settings) -> None:
        self.model = model
        self.mask_id = model.spec.mask_id
        self.guided = bool(settings.cfg_scale)
        self.mode = settings.cache
        self.refresh_every = settings.refresh_every
        self.around = settings.refresh_around
        self.shift = model.spec.shift
        self.topology = Topology.of(model, traits, settings)
        self.branches = traits.branches
        self.cache: Cache | None = None
        packs = getattr(model.network, "packs_rows", False)
        self.packs = packs and model.takes_masks and not self.topology.shadowed

    def follow(
        self, other: "Forward", index: Tensor, rows: int, first: int, shape: tuple[int, int]
    ) -> None:
        """Go on with the rows `index` of the `rows` of another, from row `first` of a canvas on.

        Of that canvas `shape` tells rows and columns.
        """
        if other.cache is None:
            return
        cache = self.room(*shape)
        if index.numel() == shape[0]:
            cache.follow(other.cache, self.both(index, rows), 0)
            return
        for half in range(2 if self.guided else 1):
            cache.follow(other.cache, index + half * rows, first + half * shape[0])

    def settle(self, line: Tensor, due: Due) -> None:
        """Give all branches of a row the keys of the one that it goes on with.

        Those of a window are made anew at every forward. Others differ where one branch was
        computed for all, and where a row was computed as a whole within its block.

        Args:
            line: where that branch lies, int64 [B].
            due: what the forward computed.
        """
        if self.cache is None:
            return
        again = self.refresh_every is not None and any(due.refresh)
        if due.alike or (again and not self.topology.final):
            index = line.repeat_interleave(self.branches)
            self.cache.follow(self.cache, self.both(index, index.numel()), 0)

    def room(self, rows: int, columns: int) -> Cache:
        """Where keys and values of so many rows and columns are kept."""
        if self.cache is None:
            self.cache = Cache(rows * (2 if self.guided else 1), columns)
        return self.cache

    def both(self, index: Tensor, rows: int) -> Tensor:
        """Rows, and with guidance the unconditional ones that belong to them."""
        return torch.cat((index, index + rows)) if self.guided else index

    def __call__(self, canvas: Canvas, view: StepView, progress: Progress, due: Due) -> Hidden:
        """Evaluate the network.

        Args:
            canvas: the rows.
            view: their windows.
            progress: where they stand.
            due: what the host knows.
        """
        if self.mode == "none":
            return self.rows(canvas, view, due.lengths, None, due.packing)
        (batch, length), each = canvas.tokens.shape, self.branches if due.alike else 1
        cache = self.room(batch * each, length)
        if self.topology.final:
            end = self.topology.block_end(canvas, view.block_start)
            count = max(due.reach, view.positions.shape[1])
            return self.part(canvas, view, due, Stretch(progress.kept, end, count), cache)
        if due.whole:
            keep = Refresh(cache, length, slice(None, None, each))  # the first branch of each row
            return self.rows(canvas, view, due.lengths, keep, due.packing)
        part = self.part(canvas, view, due, self.stretch(canvas, view, due), cache)
        # Some rows were computed in vain: cheaper than to copy the others' keys together.
        if due.room:
            again = first(self.fresh(progress) & ~progress.done, due.room)
            return self.merged(part, canvas, view, again, length, None)
        if any(due.refresh):
            again = flagged(due.refresh, canvas.tokens.device)
            lengths = [n for n, fresh in zip(due.lengths, due.refresh, strict=True) if fresh]
            return self.merged(part, canvas, view, again, max(lengths), lengths)
        return part

    def fresh(self, progress: Progress) -> Tensor:
        """Rows that the next forward computes as a whole, whose keys it keeps; bool [B]."""
        begins = progress.spent == 0
        return begins if self.refresh_every is None else begins | self.again(progress.spent)

    def again(self, spent: Tensor) -> Tensor:
        """Rows whose cache is to be made again although their block already has one, bool [B]."""
        every = self.refresh_every
        return spent < 0 if every is None else (spent > 0) & (spent % every == 0)

    def kept(self, start: Tensor, again: Tensor) -> Tensor:
        """Columns that are final once a block beginning at `start` was forwarded, int64 [B].

        0 where the row is to be computed again from its beginning, bool [B].
        """
        return self.topology.block_start(start).masked_fill(again, 0)

    def reach(self, canvas: Canvas, start: Tensor, kept: Tensor, done: Tensor) -> Tensor:
        """Most columns to compute in a row that is not done, int64 [1].

        Args:
            canvas: the rows.
            start: int64 [B], where their blocks begin.
            kept: int64 [B], columns that are final and cached.
            done: bool [B].
        """
        if self.topology.final:
            each = self.topology.block_end(canvas, start) - kept
        elif self.mode == "prefix":
            each = canvas.length - start
        else:
            return start.new_zeros(1)
        return each.masked_fill(done, 0).amax(0, keepdim=True)

    def stretch(self, canvas: Canvas, view: StepView, due: Due) -> Stretch:
        """What a cache leaves to compute: the window or all from its start on, and what is near."""
        window, start, end = view.positions.shape[1], view.block_start, canvas.stop
        near = min(self.around, canvas.tokens.shape[1])
        if near:
            start, end = start - near, self.topology.reach(canvas, start) + near
        if self.mode == "prefix":
            return Stretch(start, canvas.length, max(due.reach, window) + near, near)
        return Stretch(start, torch.minimum(end, canvas.length), window + 2 * near, near)

    def rows(
        self,
        canvas: Canvas,
        view: StepView,
        lengths: Sequence[int] | None,
        keep: View | None,
        packing: Packing | None,
    ) -> Hidden:
        """Evaluate whole rows; `lengths` as far as the host knows them."""
        width = canvas.tokens.shape[1]
        if packing is not None:
            return self.packed(canvas, view, packing, keep)
        columns = torch.arange(width, device=canvas.tokens.device)
        padded = lengths is None or min(lengths) < width
        valid = columns < canvas.length[:, None] if padded else None
        states = self.evaluate(
            canvas, view, canvas.tokens, columns[None], ~canvas.blank, valid, keep
        )
        return Hidden(
            states[:, :width], self.behind(states, width), False, self.count(view, canvas.length)
        )

    def packed(self, canvas: Canvas, view: StepView, packing: Packing, keep: View | None) -> Hidden:
        """Evaluate whole rows without their padding."""
        batch, width = canvas.tokens.shape
        columns = torch.arange(width, device=canvas.tokens.device)
        valid = columns < canvas.length[:, None]
        attend = self.topology.seen(canvas, view, columns[None], valid, True)
        tokens, positions = canvas.tokens, columns.expand(batch, -1)
        if self.guided:
            tokens = torch.cat((tokens, tokens.masked_fill(~canvas.blank, self.mask_id)))
            positions = positions.repeat(2, 1)
            attend = None if attend is None else attend.repeat(2, 1, 1)
        tokens, positions = packing.pack(tokens), packing.pack(positions)
        packed = Packed(packing, keep, whole=not self.topology.final)
        states = self.model.hidden(tokens, positions, None, packed, attend=attend)
        whole = packing.unpack(states.to(tokens.device))
        return Hidden(whole, None, False, self.count(view, canvas.length))

    def packing(self, lengths: Sequence[int], width: int, copies: int = 1) -> Packing | None:
        """How whole rows of these lengths are packed; None where padding is computed, too.

        A row alone is padded only to be of the same length as rows of other generations, and where
        most forwards are of windows it stays so: they all share one recording.

        Args:
            lengths: tokens of each row.
            width: columns of the canvas.
            copies: of each row, behind each other.
        """
        alone = len(lengths) == 1 and self.mode != "none"
        if alone or not (self.packs and worthwhile(lengths, width)):
            return None
        each = [length for length in lengths for _ in range(copies)]
        return Packing.of([*each, *each] if self.guided else each, width, self.model.device)

    def part(
        self, canvas: Canvas, view: StepView, due: Due, stretch: Stretch, cache: Cache
    ) -> Hidden:
        """Evaluate a stretch of each row against what the cache holds."""
        length, window = canvas.tokens.shape[1], view.positions.shape[1]
        ahead = int(self.shift)  # the state that predicts the first token stands in front of it
        count = stretch.count + ahead
        begin = stretch.begin - ahead if ahead else stretch.begin
        by = fused_canvas if fused_canvas.covers(canvas.tokens) else plain
        tokens, places, given, slots, inside = by.stretch(
            canvas.tokens, canvas.blank, begin, stretch.end, count, cache.length, 1 + self.guided
        )
        each = cache.rows // slots.shape[0]
        if each > 1:  # the first branch of each row
            line = torch.arange(slots.shape[0], device=slots.device)[:, None]
            slots = slots + line * (each - 1) * (cache.length + 1)
        reused = Reuse(cache, slots, length, slice(None, None, each))
        valid = None
        if min(due.lengths) < length:
            valid = torch.arange(length, device=tokens.device) < canvas.length[:, None]
        states = self.evaluate(canvas, view, tokens, places, given, valid, reused)
        own = states[:, ahead + stretch.lead : count]
        # On a grid what is computed in front of a window is at least as long as that.
        if self.topology.final and (self.topology.causal or stretch.count > window):
            offset = view.block_start - stretch.begin
            offset = offset[:, None] + torch.arange(window, device=offset.device)
            index = offset.clamp(max=stretch.count - 1).repeat(2 if self.guided else 1, 1)
            own = own.gather(1, index[..., None].expand(-1, -1, own.shape[-1]))
        shadows = self.behind(states, count)
        return Hidden(own[:, :window], shadows, True, self.count(view, inside))

    def evaluate(
        self,
        canvas: Canvas,
        view: StepView,
        tokens: Tensor,
        positions: Tensor,
        given: Tensor,
        valid: Tensor | None,
        cache: View | None,
    ) -> Tensor:
        """Hidden states [B, Q, D]; [B, Q + W, D] with shadows, [2 B, ...] with guidance.

        Args:
            canvas: the rows.
            view: their windows.
            tokens: int64 [B, Q], queries.
            positions: int64 [B or 1, Q].
            given: bool [B, Q], what an unconditional row does not see.
            valid: bool [B, L], False at padding; None where there is none.
            cache: where keys and values go.
        """
        batch, count = tokens.shape
        attend = self.topology.seen(canvas, view, positions, valid, isinstance(cache, Reuse))
        if self.topology.shadowed:
            attend = self.topology.with_shadows(canvas, view, count, valid, attend)
            positions = torch.cat((positions.expand(batch, -1), view.positions), 1)
            tokens = torch.cat((tokens, torch.full_like(view.tokens, self.mask_id)), 1)
            given = torch.cat((given, torch.zeros_like(view.masked)), 1)
        if self.guided:
            # The unconditional row is the same canvas without what was given.
            tokens = torch.cat((tokens, tokens.masked_fill(given, self.mask_id)))
            positions = positions if positions.shape[0] == 1 else positions.repeat(2, 1)
            valid = None if valid is None else valid.repeat(2, 1)
            attend = None if attend is None else attend.repeat(2, 1, 1)
        more: dict[str, Any] = {}
        if attend is not None:
            valid, more["attend"] = None, attend
        return self.model.hidden(tokens, positions, valid, cache, **more).to(tokens.device)

    def behind(self, states: Tensor, count: int) -> Tensor | None:
        """States of the shadows, behind those of `count` queries."""
        return states[:, count:] if self.topology.shadowed else None

    def count(self, view: StepView, queries: Tensor) -> Tensor:
        """Positions that were computed, int64 [B]: shadows too, guidance twice."""
        if self.topology.shadowed:
            queries = queries + (view.masked | view.editable).sum(-1)
        return 2 * queries if self.guided else queries

    def merged(
        self,
        part: Hidden,
        canvas: Canvas,
        view: StepView,
        fresh: Tensor,
        width: int,
        lengths: Sequence[int] | None,
    ) -> Hidden:
        """States by column, of which those of the rows `fresh` are computed as a whole.

        Args:
            part: those of all rows.
            canvas: the rows.
            view: their windows.
            fresh: int64, rows; the same one repeated where there are fewer than places.
            width: columns of theirs, or more.
            lengths: theirs, where the host knows which they are.
        """
        assert self.cache is not None
        where = self.both(fresh, part.queries.shape[0])
        keep = Refresh(self.cache, width, where)
        packing = None if lengths is None else self.packing(lengths, width)
        few = canvas.select(fresh, width)
        some = self.rows(few, select_rows(view, fresh), lengths, keep, packing)
        columns = view.positions[fresh].clamp(max=width - 1)
        columns = columns.repeat(2, 1) if self.guided else columns
        index = columns[..., None].expand(-1, -1, some.states.shape[-1])
        states = part.states.index_copy(0, where, some.states.gather(1, index))
        shadows = part.shadows
        if shadows is not None and some.shadows is not None:
            shadows = shadows.index_copy(0, where, some.shadows)
        queries = part.queries.index_copy(0, fresh, some.queries)
        return Hidden(states, shadows, True, queries)


def first(marked: Tensor, count: int) -> Tensor:
    """The first `count` rows marked in bool [B], int64 [count]; the first one also for missing."""
    rows = (~marked).long().argsort(stable=True)[:count]
    return rows.where(marked[rows], rows[0])


def flagged(flags: Sequence[bool], device: torch.device) -> Tensor:
    """The rows that are flagged, int64."""
    return send([row for row, flag in enumerate(flags) if flag], device)
