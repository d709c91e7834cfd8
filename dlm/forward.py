"""One evaluation of the network: whole rows, or the part of them that a cache leaves to compute.

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
from dlm.progress import Due, Progress, Scope, select_rows
from dlm.remainder import Queries, Remainder
from dlm.renewal import Renewal, Stretch
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


class Forward:
    """Forwards of rows of one number and length, with what they leave behind for the next ones."""

    def __init__(
        self,
        model: Model,
        traits: Traits,
        settings: Settings,
        horizon: Horizon,
        *,
        static: bool = False,
    ) -> None:
        """With `static` no window's forward hangs on how long the rows are that it is of."""
        self.model = model
        self.static = static
        self.horizon = horizon
        self.mask_id = model.spec.mask_id
        self.guided = bool(settings.cfg_scale)
        self.mode = settings.caching
        self.shift = model.spec.shift
        self.topology = Topology.of(model, traits, settings)
        self.renewal = Renewal(self.topology, settings, shift=self.shift)
        self.branches = traits.branches
        self.cache: Cache | None = None
        self.takes_views = getattr(model.network, "packs_rows", False) and model.takes_masks
        self.packs = self.takes_views and not self.topology.shadowed

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

        Those of a window, and of what is around it, are made anew at every forward of the block,
        and by the first one of the next. Others differ where one branch was computed for all, where
        more than the window was within a block, and where what is around it is of the prompt, which
        stays as it is.

        Args:
            line: where that branch lies, int64 [B].
            due: what the forward computed.
        """
        if self.cache is None:
            return
        again = self.renewal.refresh_every is not None and any(due.scopes)
        stays = bool(self.renewal.around and self.renewal.prompt_every)
        if due.alike or stays or (again and not self.topology.final):
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
        (batch, length), each = canvas.tokens.shape, self.branches if due.alike else 1
        cache = None if self.mode == "none" else self.room(batch * each, length)
        if due.across is not None:
            canvas = self.horizon.narrowed(canvas, progress, due.across)
            length = due.across
        if cache is None:
            return self.whole(canvas, view, due, None)
        if self.topology.final:
            stretch = self.renewal.window(canvas, view, progress, due)
            return self.part(canvas, view, due.lengths, stretch, cache)
        if due.scope is Scope.ROW:
            keep = Refresh(cache, length, slice(None, None, each))  # the first branch of each row
            return self.whole(canvas, view, due, keep)
        if due.scope is Scope.ANSWER:
            return self.part(
                canvas, view, due.lengths, self.renewal.answer(canvas, view, due), cache
            )
        stretch = self.renewal.window(canvas, view, progress, due)
        if due.scope is Scope.WINDOW:
            return self.part(canvas, view, due.lengths, stretch, cache)
        # Some rows are computed in vain: cheaper than to copy the others' keys together. What is
        # made of them must not be kept where it would outlive what they are computed for.
        if self.renewal.around and self.renewal.counts:
            vain = progress.scopes != Scope.WINDOW
            none = stretch.begin - int(self.shift)  # with what stands in front of it
            stretch = replace(stretch, end=torch.where(vain, none, stretch.end))
        made = self.part(canvas, view, due.lengths, stretch, cache)
        for scope, room in zip((Scope.ANSWER, Scope.ROW), due.rooms, strict=True):
            if room or scope in due.scopes:
                fresh = self.renewal.rows(scope, room, progress, due)
                pairs = zip(due.lengths, due.scopes, strict=True)
                lengths = None if room else [length for length, each in pairs if each is scope]
                some = self.anew(canvas, view, due, scope, fresh, lengths)
                made = self.merged(made, some, fresh)
        return made

    def whole(self, canvas: Canvas, view: StepView, due: Due, keep: View | None) -> Hidden:
        """Evaluate whole rows, as far as they are seen."""
        made = self.rows(canvas, view, due.lengths, keep, due.packing)
        return made if due.across is None else self.by_column(made, view, due.across)

    def by_column(self, made: Hidden, view: StepView, width: int) -> Hidden:
        """States at the columns of the windows, of those at every position of so many."""
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
        """Evaluate whole rows; `lengths` as far as the host knows them."""
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
        packed = Packed(packing, keep, whole=self.topology.open)
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
        stretch: Stretch,
        cache: Cache,
        some: Tensor | None = None,
    ) -> Hidden:
        """Evaluate a stretch of each row against what the cache holds.

        Args:
            canvas: the rows.
            view: their windows.
            lengths: of the rows, as far as the host knows them.
            stretch: what to compute.
            cache: with as many rows, or their branches behind each other.
            some: int64, where it has these rows, with guidance both halves of them.
        """
        length, ahead = canvas.tokens.shape[1], int(self.shift)
        asked = self.asked(canvas, view, stretch, cache.length)
        tokens, slots = asked.tokens, asked.slots
        lines: Lines = slice(None, None, cache.rows // len(slots)) if some is None else some
        if some is not None or cache.rows != len(slots):  # the first branch of each row
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
        count = stretch.count + ahead
        own, window = states[:, ahead + (stretch.lead or 0) : count], view.positions.shape[1]
        if stretch.lead is None:
            own = self.by_window(own, view, stretch, asked.left)
        return Hidden(
            own[:, :window], self.behind(states, count), True, self.count(view, asked.inside)
        )

    def asked(self, canvas: Canvas, view: StepView, stretch: Stretch, room: int) -> Queries:
        """The queries of a stretch, whose keys and values go to a cache of `room` columns."""
        ahead = int(self.shift)  # the state that predicts the first token stands in front of it
        count = stretch.count + ahead
        begin = stretch.begin - ahead if ahead else stretch.begin
        by = fused_canvas if fused_canvas.covers(canvas.tokens) else plain
        tokens, places, given, slots, inside = by.stretch(
            canvas.tokens, canvas.blank, begin, stretch.end, count, room, 1 + self.guided
        )
        if stretch.settled is None:
            return Queries(tokens, places, given, slots, inside, None)
        inner = slots[: len(tokens)] % (room + 1) < room
        offset, most = view.block_start - begin, max(1 + ahead, count - stretch.spared)
        left = Remainder.of(inner, stretch.settled, offset, most)
        tokens, places, given = (left.take(each) for each in (tokens, places, given))
        return Queries(tokens, places, given, left.slots(slots, room), left.counts.sum(-1), left)

    def by_window(
        self, own: Tensor, view: StepView, stretch: Stretch, left: Remainder | None
    ) -> Tensor:
        """States of a stretch at the columns of the window, which begins elsewhere in each row."""
        offset, window = view.block_start - stretch.begin, view.positions.shape[1]
        # Of the columns as they lie in front of the tokens that they predict.
        index = offset[:, None] + torch.arange(window, device=offset.device)
        index = index.clamp(max=stretch.count - 1)
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

    def anew(
        self,
        canvas: Canvas,
        view: StepView,
        due: Due,
        scope: Scope,
        fresh: Tensor,
        lengths: Sequence[int] | None,
    ) -> Hidden:
        """States by column of some rows, of which more than the window is computed.

        Args:
            canvas: all rows.
            view: their windows.
            due: what the host knows of them.
            scope: what is computed.
            fresh: int64, the rows; the same one repeated where there are fewer than places.
            lengths: of the rows, where the host knows which they are.
        """
        assert self.cache is not None
        where, width = self.both(fresh, canvas.tokens.shape[0]), canvas.tokens.shape[1]
        seen = select_rows(view, fresh)
        if scope is Scope.ANSWER:
            few = canvas.select(fresh, width)
            answer = self.renewal.answer(few, seen, due)
            return self.part(few, seen, lengths, answer, self.cache, where)
        width = width if lengths is None else max(lengths)
        few, keep = canvas.select(fresh, width), Refresh(self.cache, width, where)
        packing = None if lengths is None else self.packing(lengths, width)
        return self.by_column(self.rows(few, seen, lengths, keep, packing), seen, width)

    def merged(self, made: Hidden, some: Hidden, fresh: Tensor) -> Hidden:
        """States by column, of which `some` take the place of those of the rows `fresh`, int64."""
        where, shadows = self.both(fresh, made.queries.shape[0]), made.shadows
        states = made.states.index_copy(0, where, some.states)
        if shadows is not None and some.shadows is not None:
            shadows = shadows.index_copy(0, where, some.shadows)
        return Hidden(states, shadows, True, made.queries.index_copy(0, fresh, some.queries))
