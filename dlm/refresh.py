"""When cached keys and values are recomputed, and for which part of a row.

Shapes: B rows, L canvas, W window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.canvas import Canvas
from dlm.host import send
from dlm.progress import ForwardPlan, Progress, Scope
from dlm.settings import Settings
from dlm.topology import Topology
from dlm.types import StepView
from dlm.window import Window


@dataclass(frozen=True, slots=True)
class QuerySpan:
    """Columns of each row to compute."""

    begin: Tensor  # int64 [B]
    end: Tensor  # int64 [B], one past the last
    count: int  # queries, the same for all rows; those from `end` on are discarded
    lead: int | None = 0
    """Queries before the window, including those before the row's start; None if rows differ, which
    takes at least as many queries as a window has."""
    settled: Tensor | None = None  # bool [B, W], columns of the window left out
    spared: int = 0  # fewest columns left out of any row


class RefreshPlan:
    """Decides what a forward pass computes of each row, from the passes made so far.

    The first forward pass of a block computes the whole row, as in Fast-dLLM (Wu et al. 2025,
    arXiv:2505.22618), and so does every n-th with `refresh_every`. These passes may leave out what
    decoding changes little, until it was last computed a given number of passes ago: everything
    before the first block (`refresh_prompt_every`), and all but the block and the tokens decoded
    since the last pass (`refresh_answer_every`). dLLM-Cache has such intervals for prompt and
    response (Liu et al. 2025, arXiv:2506.06295).

    The other passes of a block may leave out tokens of the block that were already decoded at the
    last pass (`refresh_decoded_every`): their keys and values are kept one pass after the token is
    written, as in dKV-Cache-Decode (Ma et al. 2025, arXiv:2505.15781).
    """

    def __init__(self, topology: Topology, settings: Settings, *, shift: bool) -> None:
        """Take the options; with `shift`, a token is predicted at the column before it."""
        self.topology = topology
        self.mode = settings.caching
        self.refresh_every = settings.refresh_every
        self.around = settings.refresh_around
        self.answer_every = settings.refresh_answer_every or 0  # passes; 0 is every refresh
        self.prompt_every = settings.refresh_prompt_every or 0  # 0 is with every answer refresh
        every = settings.refresh_decoded_every
        self.decoded_every = 0 if every == 1 or self.mode == "none" else every or 0  # 0 is always
        self.shift = shift
        self.counts = bool(self.answer_every or self.prompt_every)

    def scopes(self, spent: Tensor, since: Tensor) -> Tensor:
        """What the next forward pass computes of each row, a `Scope`, int64 [B].

        Args:
            spent: int64 [B], forward passes made on the block.
            since: as in `Progress`.
        """
        fresh = spent == 0
        if self.refresh_every is not None:
            fresh |= self.again(spent)
        if not self.counts:
            return fresh * int(Scope.ROW)
        answer = fresh & (since[:, 0] >= self.answer_every)
        return answer + (answer & (since[:, 1] >= self.prompt_every)).long()

    def since(self, progress: Progress) -> Tensor:
        """Passes since each answer was fully computed, and since the row was, counting this one.

        int64 [B, 2].
        """
        if not self.counts:
            return progress.since
        scopes = progress.scopes
        made = torch.stack((scopes >= Scope.ANSWER, scopes >= Scope.ROW), 1)
        return progress.since.masked_fill(made, 0) + 1

    def begin(self, batch: int, device: torch.device) -> Tensor:
        """`since` before the first forward pass, which computes whole rows."""
        each = (self.answer_every, self.prompt_every)
        return torch.stack([torch.full((batch,), n, device=device) for n in each], 1)

    def again(self, spent: Tensor) -> Tensor:
        """Rows whose cache is due for a refresh within the block, bool [B]."""
        every = self.refresh_every
        return spent < 0 if every is None else (spent > 0) & (spent % every == 0)

    def kept(self, canvas: Canvas, start: Tensor, spent: Tensor) -> Tensor:
        """Columns with up-to-date keys once a block at `start` was computed, int64 [B].

        With final keys, this is 0 in a row that is due for a full refresh.

        Args:
            canvas: the rows.
            start: int64 [B].
            spent: int64 [B], forward passes made on the next block.
        """
        if not self.topology.final:
            # A copy of the window's tensor, as an in-place update of both would overwrite it.
            return start.clone()
        return self.topology.block_start(canvas, start).masked_fill(self.again(spent), 0)

    def reach(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Most columns to compute of any unfinished row's window, int64 [1].

        Args:
            canvas: the rows.
            progress: their state.
        """
        start, kept, stop = progress.window.start, progress.kept, progress.open
        if self.topology.final:
            each = self.topology.block_end(canvas, start, stop) - kept
        elif self.mode == "prefix":
            each = canvas.length - (kept if self.answer_every else start)
        elif self.answer_every:
            each = self.topology.reach(canvas, start, stop) - kept
        else:
            return start.new_zeros(1)
        return each.masked_fill(progress.done, 0).amax(0, keepdim=True)

    def fresh(self, before: Window, window: Window) -> Tensor | None:
        """Columns of a block that a forward pass saw masked and that no longer are.

        Bool [B, W], in rows that stayed in the block; None if nothing is left out of blocks.
        """
        if not self.decoded_every:
            return None
        more = window.masked.shape[1] - before.masked.shape[1]
        return pad(before.masked, (0, more)) & ~window.masked

    def settled(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Columns that the next forward pass leaves out of what may change, bool [B, W].

        These have no mask and were seen in their present state by the last pass, except in rows
        where the block is due to be fully recomputed.

        Args:
            canvas: the rows.
            progress: their state.
        """
        assert progress.fresh is not None
        window, since = progress.window, progress.spent
        if self.refresh_every is not None:
            since = since % self.refresh_every
        computed = window.masked | progress.fresh | (since % self.decoded_every == 0)[:, None]
        if self.shift:
            computed = computed | pad(window.masked[:, 1:], (0, 1))
        columns = torch.arange(computed.shape[1], device=computed.device)
        end = (canvas.stop if progress.open is None else progress.open) - window.start
        return ~computed & (columns < end[:, None])

    def spared(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Fewest settled columns of any row that computes no more than a window, int64 [1].

        Arguments as in `settled`.
        """
        settled, other = self.settled(canvas, progress), progress.done
        each = settled.sum(-1)
        if not self.topology.final:
            other = other | (progress.scopes != Scope.WINDOW)
        return each.masked_fill(other, settled.shape[1]).amin(0, keepdim=True)

    def window(
        self, canvas: Canvas, view: StepView, progress: Progress, plan: ForwardPlan
    ) -> QuerySpan:
        """The span that the cache does not cover, less the settled columns of the window."""
        if self.topology.final:
            end = self.topology.block_end(canvas, view.block_start, progress.open)
            window = view.positions.shape[1]
            count = max(plan.reach, window)
            # On a grid, what precedes a one-block window is at least as long, so here nothing does.
            even = self.topology.on_grid and progress.open is None and count == window
            span = QuerySpan(progress.kept, end, count, 0 if even else None)
        else:
            span = self.near(canvas, view, progress, plan)
        if not self.decoded_every:
            return span
        settled = self.settled(canvas, progress)
        return replace(span, settled=settled, spared=plan.spared, lead=None)

    def near(
        self, canvas: Canvas, view: StepView, progress: Progress, plan: ForwardPlan
    ) -> QuerySpan:
        """The span of a bidirectional model: the window, or all from it on, and what is near.

        It also covers the block before, if no forward pass has seen its last tokens.
        """
        window, start = view.positions.shape[1], view.block_start
        end = canvas.stop if progress.open is None else progress.open
        near, before = min(self.around, canvas.tokens.shape[1]), self.answer_every > 0
        count = max(plan.reach, window)
        # If the block before is computed too, there are more columns than a one-block window has.
        lead = None if before and (progress.open is not None or count > window) else near
        if near or before:
            end = self.topology.reach(canvas, start, progress.open)
        if before:
            start = progress.kept
        if near:
            start, end = start - near, end + near
        if self.mode == "prefix":
            return QuerySpan(start, canvas.length, count + near, lead)
        return QuerySpan(start, torch.minimum(end, canvas.length), count + 2 * near, lead)

    def answer(self, canvas: Canvas, view: StepView, plan: ForwardPlan) -> QuerySpan:
        """The span of each row from its first block on."""
        count = max(plan.tail, view.positions.shape[1])
        return QuerySpan(canvas.origin, canvas.length, count, None)

    def rows(self, scope: Scope, room: int, progress: Progress, plan: ForwardPlan) -> Tensor:
        """Rows for which the next forward pass computes exactly `scope`, int64.

        Args:
            scope: more than the window.
            room: rows to return, padded with the first one; 0 for those that `plan` names.
            progress: their state.
            plan: what the host knows.
        """
        if not room:
            return flagged([each is scope for each in plan.scopes], progress.done.device)
        return first((progress.scopes == scope) & ~progress.done, room)


def first(marked: Tensor, count: int) -> Tensor:
    """The first `count` rows marked in bool [B], int64 [count], padded with the first one."""
    rows = (~marked).long().argsort(stable=True)[:count]
    return rows.where(marked[rows], rows[0])


def flagged(flags: Sequence[bool], device: torch.device) -> Tensor:
    """The indices of flagged rows, int64."""
    return send([row for row, flag in enumerate(flags) if flag], device)
