"""When the keys and values of a cache are made anew, and of which part of a row.

Shapes: B rows, L canvas, W window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.canvas import Canvas
from dlm.host import send
from dlm.progress import Due, Progress, Scope
from dlm.settings import Settings
from dlm.topology import Topology
from dlm.types import StepView
from dlm.window import Window


@dataclass(frozen=True, slots=True)
class Stretch:
    """Columns of each row to compute."""

    begin: Tensor  # int64 [B]
    end: Tensor  # int64 [B], one past the last
    count: int  # queries, the same for all rows; those from `end` on are thrown away
    lead: int | None = 0
    """Queries in front of the window, those in front of the row included; None where rows differ,
    which takes at least as many queries as a window has."""
    settled: Tensor | None = None  # bool [B, W], columns of the window that are not computed
    spared: int = 0  # of each row so many at least


class Renewal:
    """What a forward computes of each row, by the forwards that were made on it.

    A row is computed as a whole by the first forward of a block, as in Fast-dLLM (Wu et al. 2025,
    arXiv:2505.22618), and with `refresh_every` by every n-th. These may leave out what changes
    little with what is decoded, until the last one that did not is so many forwards ago: what
    stands before the first block (`refresh_prompt_every`), and all but the block and what was
    decoded since the last forward (`refresh_answer_every`). dLLM-Cache has such intervals of prompt
    and response (Liu et al. 2025, arXiv:2506.06295).

    The other forwards of a block may leave out what is decoded of it, and was when the last one was
    made (`refresh_decoded_every`): keys and values are kept one forward after the token is written,
    as in dKV-Cache-Decode (Ma et al. 2025, arXiv:2505.15781).
    """

    def __init__(self, topology: Topology, settings: Settings, *, shift: bool) -> None:
        """With `shift` a token is predicted by the column in front of it."""
        self.topology = topology
        self.mode = settings.caching
        self.refresh_every = settings.refresh_every
        self.around = settings.refresh_around
        self.answer_every = settings.refresh_answer_every or 0  # forwards; 0 is every refresh
        self.prompt_every = settings.refresh_prompt_every or 0  # 0 is with all of an answer
        every = settings.refresh_decoded_every
        self.decoded_every = 0 if every == 1 or self.mode == "none" else every or 0  # 0 is always
        self.shift = shift
        self.counts = bool(self.answer_every or self.prompt_every)

    def scopes(self, spent: Tensor, since: Tensor) -> Tensor:
        """What the next forward computes of each row, a `Scope`, int64 [B].

        Args:
            spent: int64 [B], forwards made on the block.
            since: as of `Progress`.
        """
        fresh = spent == 0
        if self.refresh_every is not None:
            fresh |= self.again(spent)
        if not self.counts:
            return fresh * int(Scope.ROW)
        answer = fresh & (since[:, 0] >= self.answer_every)
        return answer + (answer & (since[:, 1] >= self.prompt_every)).long()

    def since(self, progress: Progress) -> Tensor:
        """Forwards since all of each answer was computed, and all of the row, with this one.

        int64 [B, 2].
        """
        if not self.counts:
            return progress.since
        scopes = progress.scopes
        made = torch.stack((scopes >= Scope.ANSWER, scopes >= Scope.ROW), 1)
        return progress.since.masked_fill(made, 0) + 1

    def begin(self, batch: int, device: torch.device) -> Tensor:
        """The same before the first forward, which computes whole rows."""
        each = (self.answer_every, self.prompt_every)
        return torch.stack([torch.full((batch,), n, device=device) for n in each], 1)

    def again(self, spent: Tensor) -> Tensor:
        """Rows whose cache is to be made again although their block already has one, bool [B]."""
        every = self.refresh_every
        return spent < 0 if every is None else (spent > 0) & (spent % every == 0)

    def kept(self, canvas: Canvas, start: Tensor, spent: Tensor) -> Tensor:
        """Columns with keys of the tokens they hold once a block at `start` was forwarded.

        Where they are final, 0 in a row that is to be computed again from its beginning; int64 [B].

        Args:
            canvas: the rows.
            start: int64 [B].
            spent: int64 [B], forwards made on the block that comes next.
        """
        if not self.topology.final:
            # Not the window's own tensor: who takes both over in place would write that one first.
            return start.clone()
        return self.topology.block_start(canvas, start).masked_fill(self.again(spent), 0)

    def reach(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Most columns to compute of what a cache leaves, in a row that is not done, int64 [1].

        Args:
            canvas: the rows.
            progress: where they stand.
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
        """Columns of a block that were masked in front of a forward and are not any more.

        Bool [B, W], of rows that stayed in it; None where nothing is left out of a block.
        """
        if not self.decoded_every:
            return None
        more = window.masked.shape[1] - before.masked.shape[1]
        return pad(before.masked, (0, more)) & ~window.masked

    def settled(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Columns of what may change that the next forward leaves out, bool [B, W].

        Those without a mask that the last forward saw as they are, except in rows whose last
        forward over all of the block is so many forwards ago.

        Args:
            canvas: the rows.
            progress: where they stand.
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
        """Fewest such columns of a row of which no more than a window is computed, int64 [1].

        Arguments as `settled`.
        """
        settled, other = self.settled(canvas, progress), progress.done
        each = settled.sum(-1)
        if not self.topology.final:
            other = other | (progress.scopes != Scope.WINDOW)
        return each.masked_fill(other, settled.shape[1]).amin(0, keepdim=True)

    def window(self, canvas: Canvas, view: StepView, progress: Progress, due: Due) -> Stretch:
        """What a cache leaves to compute of each row, less what is settled of its window."""
        if self.topology.final:
            end = self.topology.block_end(canvas, view.block_start, progress.open)
            window = view.positions.shape[1]
            count = max(due.reach, window)
            # On a grid what is computed in front of a window of one block is as long at least.
            even = self.topology.on_grid and progress.open is None and count == window
            stretch = Stretch(progress.kept, end, count, 0 if even else None)
        else:
            stretch = self.near(canvas, view, progress, due)
        if not self.decoded_every:
            return stretch
        settled = self.settled(canvas, progress)
        return replace(stretch, settled=settled, spared=due.spared, lead=None)

    def near(self, canvas: Canvas, view: StepView, progress: Progress, due: Due) -> Stretch:
        """What a cache leaves to compute: the window or all from its start on, and what is near.

        Of a block before it, too, whose last tokens no forward has seen.
        """
        window, start = view.positions.shape[1], view.block_start
        end = canvas.stop if progress.open is None else progress.open
        near, before = min(self.around, canvas.tokens.shape[1]), self.answer_every > 0
        count = max(due.reach, window)
        # A block before it is at least as long as a window of one block.
        lead = None if before and (progress.open is not None or count > window) else near
        if near or before:
            end = self.topology.reach(canvas, start, progress.open)
        if before:
            start = progress.kept
        if near:
            start, end = start - near, end + near
        if self.mode == "prefix":
            return Stretch(start, canvas.length, count + near, lead)
        return Stretch(start, torch.minimum(end, canvas.length), count + 2 * near, lead)

    def answer(self, canvas: Canvas, view: StepView, due: Due) -> Stretch:
        """All of each row from its first block on."""
        count = max(due.tail, view.positions.shape[1])
        return Stretch(canvas.origin, canvas.length, count, None)

    def rows(self, scope: Scope, room: int, progress: Progress, due: Due) -> Tensor:
        """Rows of which the next forward computes just this, int64.

        Args:
            scope: more than the window.
            room: how many rows to tell, the first one again for those that are missing; 0 for
                those that `due` names.
            progress: where they stand.
            due: what the host knows.
        """
        if not room:
            return flagged([each is scope for each in due.scopes], progress.done.device)
        return first((progress.scopes == scope) & ~progress.done, room)


def first(marked: Tensor, count: int) -> Tensor:
    """The first `count` rows marked in bool [B], int64 [count]; the first one also for missing."""
    rows = (~marked).long().argsort(stable=True)[:count]
    return rows.where(marked[rows], rows[0])


def flagged(flags: Sequence[bool], device: torch.device) -> Tensor:
    """The rows that are flagged, int64."""
    return send([row for row, flag in enumerate(flags) if flag], device)
