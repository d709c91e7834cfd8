"""One evaluation of the network: whole rows, or only the part that a KV cache does not cover.

Shapes: B rows, L canvas, W window, Q queries, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.cache import Cache, Lines, Padded, Refresh, Reuse, View
from dlm.canvas import Canvas
from dlm.horizon import Horizon
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.models.model import Model
from dlm.packing import Packed, Packing, worthwhile
from dlm.progress import ForwardPlan, Progress, Scope, select_rows
from dlm.refresh import QuerySpan, RefreshPlan
from dlm.remainder import Queries, Remainder
from dlm.settings import Settings
from dlm.topology import Topology
from dlm.traits import Traits
from dlm.types import StepView


@dataclass(frozen=True, slots=True)
class Hidden:
    """Final hidden states; with guidance, the unconditional rows come after the others."""

    states: Tensor  # [B, L, D] at every position, or [B, W, D] at the columns of the window
    shadows: Tensor | None  # [B, W, D], of the shadow masks of the window
    by_column: bool
    queries: Tensor  # int64 [B], positions computed


class Forward:
    """Runs forward passes on canvases of one shape, and keeps what later ones reuse."""

    def __init__(
        self,
        model: Model,
        traits: Traits,
        settings: Settings,
        horizon: Horizon,
        *,
        static: bool = False,
    ) -> None:
        """Take the model and options; if `static`, window shapes do not depend on row lengths."""
        self.model = model
        self.static = static
        self.horizon = horizon
        self.mask_id = model.spec.mask_id
        self.guided = bool(settings.cfg_scale)
        self.mode = settings.caching
        self.shift = model.spec.shift
        self.topology = Topology.of(model, traits, settings)
        self.refreshes = RefreshPlan(self.topology, settings, shift=self.shift)
        self.branches = traits.branches
        self.cache: Cache | None = None
        self.takes_views = getattr(model.network, "packs_rows", False) and model.takes_masks
        self.packs = self.takes_views and not self.topology.shadowed

    def follow(
        self, other: "Forward", index: Tensor, rows: int, first: int, shape: tuple[int, int]
    ) -> None:
        """Take over the cache of another instance for rows that continue here.

        Args:
            other: what made the forward passes so far.
            index: int64, rows of its canvas that continue.
            rows: number of rows of its canvas.
            first: the row of this canvas where they begin.
            shape: rows and columns of this canvas.
        """
        if other.cache is None:
            return
        cache = self.room(*shape)
        if index.numel() == shape[0]:
            cache.follow(other.cache, self.both(index, rows), 0)
            return
        for half in range(2 if self.guided else 1):
            cache.follow(other.cache, index + half * rows, first + half * shape[0])

    def settle(self, line: Tensor, plan: ForwardPlan) -> None:
        """Copy the keys and values of each row's chosen branch to all of its branches.

        Every forward pass of a block recomputes those of the window and around it, and so does the
        first pass of the next block. The others can differ between branches, and have to be copied,
        in three cases: one branch was computed for all; more than the window was recomputed within
        a block; or the tokens around the window belong to the prompt, which is kept.

        Args:
            line: index of the chosen branch, int64 [B].
            plan: what the forward pass computed.
        """
        if self.cache is None:
            return
        again = self.refreshes.refresh_every is not None and any(plan.scopes)
        stays = bool(self.refreshes.around and self.refreshes.prompt_every)
        if plan.alike or stays or (again and not self.topology.final):
            index = line.repeat_interleave(self.branches)
            self.cache.follow(self.cache, self.both(index, index.numel()), 0)

    def room(self, rows: int, columns: int) -> Cache:
        """The cache for this many rows and columns, allocated on first use."""
        if self.cache is None:
            self.cache = Cache(rows * (2 if self.guided else 1), columns)
        return self.cache

    def both(self, index: Tensor, rows: int) -> Tensor:
        """The rows `index`; with guidance, followed by their unconditional counterparts."""
        return torch.cat((index, index + rows)) if self.guided else index

    def __call__(
        self, canvas: Canvas, view: StepView, progress: Progress, plan: ForwardPlan
    ) -> Hidden:
        """Evaluate the network.

        Args:
            canvas: the rows.
            view: their windows.
            progress: their state.
            plan: what the host knows about this forward pass.
        """
        (batch, length), each = canvas.tokens.shape, self.branches if plan.alike else 1
        cache = None if self.mode == "none" else self.room(batch * each, length)
        if plan.across is not None:
            canvas = self.horizon.narrowed(canvas, progress, plan.across)
            length = plan.across
        if cache is None:
            return self.whole(canvas, view, plan, None)
        if self.topology.final:
            span = self.refreshes.window(canvas, view, progress, plan)
            return self.part(canvas, view, plan.lengths, span, cache)
        if plan.scope is Scope.ROW:
            keep = Refresh(cache, length, slice(None, None, each))  # the first branch of each row
            return self.whole(canvas, view, plan, keep)
        if plan.scope is Scope.ANSWER:
            return self.part(
                canvas, view, plan.lengths, self.refreshes.answer(canvas, view, plan), cache
            )
        span = self.refreshes.window(canvas, view, progress, plan)
        if plan.scope is Scope.WINDOW:
            return self.part(canvas, view, plan.lengths, span, cache)
        # Windows of all rows are computed, even if more of a row is recomputed below: cheaper than
        # gathering the other rows' keys. The wasted part must not reach the cache where the
        # recomputation would not overwrite it.
        if self.refreshes.around and self.refreshes.counts:
            vain = progress.scopes != Scope.WINDOW
            none = span.begin - int(self.shift)  # including the column before it
            span = replace(span, end=torch.where(vain, none, span.end))
        made = self.part(canvas, view, plan.lengths, span, cache)
        for scope, room in zip((Scope.ANSWER, Scope.ROW), plan.rooms, strict=True):
            if room or scope in plan.scopes:
                fresh = self.refreshes.rows(scope, room, progress, plan)
                pairs = zip(plan.lengths, plan.scopes, strict=True)
                lengths = None if room else [length for length, each in pairs if each is scope]
                some = self.anew(canvas, view, plan, scope, fresh, lengths)
                made = self.merged(made, some, fresh)
        return made

    def whole(self, canvas: Canvas, view: StepView, plan: ForwardPlan, keep: View | None) -> Hidden:
        """Evaluate whole rows, up to the horizon."""
        made = self.rows(canvas, view, plan.lengths, keep, plan.packing)
        return made if plan.across is None else self.by_column(made, view, plan.across)

    def by_column(self, made: Hidden, view: StepView, width: int) -> Hidden:
        """Select the states at the columns of the windows, from states at every position."""
        columns = view.positions.clamp(max=width - 1)
        columns = columns.repeat(2, 1) if self.guided else columns
        index = columns[..., None].expand(-1, -1, made.states.shape[-1])
        return Hidden(made.states.gather(1, index), made.shadows, True, made.queries)

    def rows(
        self,
        canvas: Canvas,
        view: StepView,
        lengths: Sequence[int] | None,
        keep: View | None,
        packing: Packing | None,
    ) -> Hidden:
        """Evaluate whole rows; `lengths` are theirs, if the host knows them."""
        width = canvas.tokens.shape[1]
        if packing is not None:
            return self.packed(canvas, view, packing, keep)
        columns = torch.arange(width, device=canvas.tokens.device)
        padded = lengths is None or min(lengths) < width
        valid = columns < canvas.length[:, None] if padded else None
        if padded and lengths is not None and self.takes_views and not self.static:
            keep = Padded(keep, width, [*lengths] * (1 + self.guided))
        states = self.evaluate(
            canvas, view, canvas.tokens, columns[None], ~canvas.blank, valid, keep
        )
        return Hidden(
            states[:, :width], self.behind(states, width), False, self.count(view, canvas.length)
        )

    def packed(self, canvas: Canvas, view: StepView, packing: Packing, keep: View | None) -> Hidden:
        """Evaluate whole rows, packed without padding."""
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
        packed = Packed(packing, keep, whole=self.topology.open)
        states = self.model.hidden(tokens, positions, None, packed, attend=attend)
        whole = packing.unpack(states.to(tokens.device))
        return Hidden(whole, None, False, self.count(view, canvas.length))

    def packing(self, lengths: Sequence[int], width: int, copies: int = 1) -> Packing | None:
        """How whole rows of these lengths are packed; None if the padding is computed instead.

        With a cache, a single row is not packed: its padding serves to share one recording with
        rows of other generations, and most forward passes are of windows. Nor are rows that a
        horizon ends at a different length in every block, if shapes are static.

        Args:
            lengths: tokens of each row.
            width: columns of the canvas.
            copies: of each row, adjacent.
        """
        alone = len(lengths) == 1 and self.mode != "none"
        varies = self.static and self.horizon.window is not None  # from block to block
        if alone or varies or not (self.packs and worthwhile(lengths, width)):
            return None
        each = [length for length in lengths for _ in range(copies)]
        return Packing.of([*each, *each] if self.guided else each, width, self.model.device)

    def part(
        self,
        canvas: Canvas,
        view: StepView,
        lengths: Sequence[int] | None,
        span: QuerySpan,
        cache: Cache,
        some: Tensor | None = None,
    ) -> Hidden:
        """Evaluate a span of each row against the keys and values in the cache.

        Args:
            canvas: the rows.
            view: their windows.
            lengths: of the rows, if the host knows them.
            span: the columns to compute.
            cache: has the same rows, or all branches of each, adjacent.
            some: int64, the rows of the cache to use, with guidance both halves; None if it has the
                same rows.
        """
        length, ahead = canvas.tokens.shape[1], int(self.shift)
        asked = self.asked(canvas, view, span, cache.length)
        tokens, slots = asked.tokens, asked.slots
        lines: Lines = slice(None, None, cache.rows // len(slots)) if some is None else some
        if some is not None or cache.rows != len(slots):  # use the first branch of each row
            found = torch.arange(cache.rows, device=slots.device)[lines]
            apart = found - torch.arange(len(slots), device=slots.device)
            slots = slots + apart[:, None] * (cache.length + 1)
        valid, sees = None, None
        if lengths is None or min(lengths) < length:
            valid = torch.arange(length, device=tokens.device) < canvas.length[:, None]
            if lengths is not None and not self.static:
                sees = [*lengths] * (1 + self.guided)
        reused = Reuse(cache, slots, length, lines, sees, whole=self.topology.open)
        states = self.evaluate(canvas, view, tokens, asked.places, asked.given, valid, reused)
        count = span.count + ahead
        own, window = states[:, ahead + (span.lead or 0) : count], view.positions.shape[1]
        if span.lead is None:
            own = self.by_window(own, view, span, asked.left)
        return Hidden(
            own[:, :window], self.behind(states, count), True, self.count(view, asked.inside)
        )

    def asked(self, canvas: Canvas, view: StepView, span: QuerySpan, room: int) -> Queries:
        """The queries of a span; their keys and values go to a cache with `room` columns."""
        ahead = int(self.shift)  # a token is predicted at the column before it
        count = span.count + ahead
        begin = span.begin - ahead if ahead else span.begin
        by = fused_canvas if fused_canvas.covers(canvas.tokens) else plain
        tokens, places, given, slots, inside = by.stretch(
            canvas.tokens, canvas.blank, begin, span.end, count, room, 1 + self.guided
        )
        if span.settled is None:
            return Queries(tokens, places, given, slots, inside, None)
        inner = slots[: len(tokens)] % (room + 1) < room
        offset, most = view.block_start - begin, max(1 + ahead, count - span.spared)
        left = Remainder.of(inner, span.settled, offset, most)
        tokens, places, given = (left.take(each) for each in (tokens, places, given))
        return Queries(tokens, places, given, left.slots(slots, room), left.counts.sum(-1), left)

    def by_window(
        self, own: Tensor, view: StepView, span: QuerySpan, left: Remainder | None
    ) -> Tensor:
        """States at the columns of the window, which begins at a different offset in each row."""
        offset, window = view.block_start - span.begin, view.positions.shape[1]
        # Here a column's state is the one that predicts its token.
        index = offset[:, None] + torch.arange(window, device=offset.device)
        index = index.clamp(max=span.count - 1)
        index = index if left is None else left.of_columns(index).clamp(max=own.shape[1] - 1)
        index = index.repeat(2 if self.guided else 1, 1)
        return own.gather(1, index[..., None].expand(-1, -1, own.shape[-1]))

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
            given: bool [B, Q], tokens that are masked in the unconditional row.
            valid: bool [B, L], False at padding; None if there is none.
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
            # The unconditional row is the same canvas with the given tokens masked.
            tokens = torch.cat((tokens, tokens.masked_fill(given, self.mask_id)))
            positions = positions if positions.shape[0] == 1 else positions.repeat(2, 1)
            valid = None if valid is None else valid.repeat(2, 1)
            attend = None if attend is None else attend.repeat(2, 1, 1)
        more: dict[str, Any] = {}
        if attend is not None:
            valid, more["attend"] = None, attend
        return self.model.hidden(tokens, positions, valid, cache, **more).to(tokens.device)

    def behind(self, states: Tensor, count: int) -> Tensor | None:
        """States of the shadows, which follow those of `count` queries."""
        return states[:, count:] if self.topology.shadowed else None

    def count(self, view: StepView, queries: Tensor) -> Tensor:
        """Positions computed, int64 [B], including shadows; doubled with guidance."""
        if self.topology.shadowed:
            queries = queries + (view.masked | view.editable).sum(-1)
        return 2 * queries if self.guided else queries

    def anew(
        self,
        canvas: Canvas,
        view: StepView,
        plan: ForwardPlan,
        scope: Scope,
        fresh: Tensor,
        lengths: Sequence[int] | None,
    ) -> Hidden:
        """States by column for rows of which more than the window is computed.

        Args:
            canvas: all rows.
            view: their windows.
            plan: what the host knows about them.
            scope: what is computed.
            fresh: int64, the rows; the first is repeated if there are fewer than places.
            lengths: of the rows, if the host knows which ones they are.
        """
        assert self.cache is not None
        where, width = self.both(fresh, canvas.tokens.shape[0]), canvas.tokens.shape[1]
        seen = select_rows(view, fresh)
        if scope is Scope.ANSWER:
            few = canvas.select(fresh, width)
            answer = self.refreshes.answer(few, seen, plan)
            return self.part(few, seen, lengths, answer, self.cache, where)
        width = width if lengths is None else max(lengths)
        few, keep = canvas.select(fresh, width), Refresh(self.cache, width, where)
        packing = None if lengths is None else self.packing(lengths, width)
        return self.by_column(self.rows(few, seen, lengths, keep, packing), seen, width)

    def merged(self, made: Hidden, some: Hidden, fresh: Tensor) -> Hidden:
        """States by column, with those of the rows `fresh`, int64, replaced by `some`."""
        where, shadows = self.both(fresh, made.queries.shape[0]), made.shadows
        states = made.states.index_copy(0, where, some.states)
        if shadows is not None and some.shadows is not None:
            shadows = shadows.index_copy(0, where, some.shadows)
        return Hidden(states, shadows, True, made.queries.index_copy(0, fresh, some.queries))
