"""What a step does to a canvas beside the network, by torch: the reference of `fused_canvas`.

Shapes: B rows, L canvas, W window, N blocks of a row, Q queries, S stop tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of tokens, as `dlm.canvas.Canvas` has them."""

    tokens: Tensor  # int64 [B, L]
    blank: Tensor  # bool [B, L], whether a token was a mask at the start
    start: Tensor  # int64 [B], first blank
    origin: Tensor  # int64 [B], where the first block begins
    stop: Tensor  # int64 [B], one past the last blank
    budget: Tensor  # int64 [B, N], forwards of each block


@dataclass(frozen=True, slots=True, eq=False)
class Stops:
    """When a stop token ends a row."""

    ids: Tensor | None  # int64 [S]; None where none does
    eos_id: int  # what a row is filled with behind it
    settled: Literal["token", "block", "row"]
    """What may change no more once nothing left of it is masked: a token by itself, the blocks
    before the active one, or only the whole row."""


def write(
    tokens: Tensor,
    positions: Tensor,
    sampled: Tensor,
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    mask_id: int,
) -> Tensor:
    """Tokens [B, L] in which those of a window that are committed, edited or remasked are new.

    Args:
        tokens: int64 [B, L].
        positions: int64 [B, W], where the columns of the window lie; read is the first of each row.
        sampled: int64 [B, W], what is committed, or edited in.
        changes: bool [B, W]: committed, edited and remasked columns, None for no column.
        mask_id: what a remasked token turns into.
    """
    change, edit, remask = changes
    if edit is not None:
        change = change | edit
    if remask is not None:
        change = change | remask
        sampled = sampled.masked_fill(remask, mask_id)
    inside, column = covered(positions, tokens.shape[1])
    return torch.where(inside & change.gather(1, column), sampled.gather(1, column), tokens)


def covered(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Which canvas positions [B, L] the window covers, and the column of each to gather.

    Gathering into the canvas, not scattering from the window: the columns of a short last block
    lie beyond the row, and no canvas position asks for them.
    """
    column = torch.arange(width, device=positions.device) - positions[:, :1]
    inside = (column >= 0) & (column < positions.shape[1])
    return inside, column.clamp(0, positions.shape[1] - 1)


def stop(
    rows: Rows, begin: Tensor, hold: Tensor, mask_id: int, block_length: int, stops: Stops
) -> tuple[Tensor, Tensor]:
    """Fill rows behind a final stop token; their tokens [B, L], and which rows are done, bool [B].

    Done is a row without a mask that does not hold its block, or with a final stop token.

    Args:
        rows: as they were written.
        begin: int64 [B], where the active block begins.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        mask_id: id that marks a blank.
        block_length: positions of a block.
        stops: which tokens end a row, and when.
    """
    tokens = rows.tokens
    open_ = rows.blank & (tokens == mask_id)
    done = ~open_.any(-1) & ~hold
    if stops.ids is None:
        return tokens, done
    width = tokens.shape[1]
    final = torch.where(open_.any(-1), open_.int().argmax(-1), width)
    if stops.settled == "row":
        final = rows.start
    elif stops.settled == "block":
        behind = final - (final - rows.origin) % block_length
        final = torch.where(hold, begin, behind)
    final = torch.where(done, width, final)
    ends = rows.blank & torch.isin(tokens, stops.ids)
    first_end = torch.where(ends.any(-1), ends.int().argmax(-1), width)
    over = first_end < final
    columns = torch.arange(width, device=tokens.device)
    behind = rows.blank & over[:, None] & (columns > first_end[:, None])
    return tokens.masked_fill(behind, stops.eos_id), done | over


def locate(
    rows: Rows,
    block: Tensor,
    hold: Tensor,
    mask_id: int,
    block_length: int,
    width: int,
    cross_block: bool,
    ahead: int = 0,
) -> tuple[Tensor, ...]:
    """The window of each row, at its own offset.

    The active block is the one that holds the row's first mask, but never one before it was.

    Args:
        rows: each with a mask if its block is -1.
        block: int64 [B], the block active so far, -1 before the first forward.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        mask_id: id that marks a blank.
        block_length: positions of a block.
        width: W.
        cross_block: whether the window reaches back to the first blank.
        ahead: blocks behind the active one that the window holds as well.

    Returns:
        Active block and where it begins, int64 [B]; positions, clamped to the canvas, and tokens
        there, int64 [B, W]; masks and blanks within its blocks and the row, bool [B, W]; forwards
        of the active block, int64 [B].
    """
    open_ = rows.blank & (rows.tokens == mask_id)
    first = (open_.int().argmax(-1) - rows.origin).div(block_length, rounding_mode="floor")
    block = torch.where(hold, block, torch.maximum(block, first))
    start = rows.origin + block * block_length
    begin = rows.start if cross_block else start
    columns = begin[:, None] + torch.arange(width, device=begin.device)
    inside = columns < torch.minimum(start + block_length * (1 + ahead), rows.stop)[:, None]
    positions = columns.clamp(max=rows.tokens.shape[1] - 1)
    return (
        block,
        start,
        positions,
        rows.tokens.gather(1, positions),
        open_.gather(1, positions) & inside,
        rows.blank.gather(1, positions) & inside,
        rows.budget.gather(1, block[:, None])[:, 0],
    )


def stretch(
    tokens: Tensor,
    blank: Tensor,
    begin: Tensor,
    end: Tensor,
    count: int,
    room: int,
    halves: int,
) -> tuple[Tensor, ...]:
    """A stretch of each row, and where a cache keeps it.

    Args:
        tokens: int64 [B, L].
        blank: bool [B, L].
        begin: int64 [B], first column, which may lie before the row.
        end: int64 [B], one past the last.
        count: Q; what is not between column 0 and `end` is laid in the last column of the cache.
        room: the last column of the cache.
        halves: how many times the rows follow each other in the cache, 2 with guidance.

    Returns:
        Tokens and their columns, clamped to the canvas, int64 [B, Q]; whether they were given,
        bool [B, Q]; their places among all columns of the cache, int64 [halves B, Q]; how many of
        a row lie between column 0 and `end`, int64 [B].
    """
    columns = begin[:, None] + torch.arange(count, device=begin.device)
    inside = (columns >= 0) & (columns < end[:, None])
    places = columns.clamp(0, tokens.shape[1] - 1)
    slots = columns.where(inside, room)
    slots = slots if halves == 1 else slots.repeat(halves, 1)
    slots += torch.arange(slots.shape[0], device=begin.device)[:, None] * (room + 1)
    return tokens.gather(1, places), places, ~blank.gather(1, places), slots, inside.sum(-1)


def look(
    masked: Tensor, blank: Tensor, limit: Tensor, spent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a row must commit now to keep its budget, and what of its window is committed.

    Args:
        masked: bool [B, W].
        blank: bool [B, W].
        limit: int64 [B], forwards the block may take, 0 for no limit.
        spent: int64 [B], forwards it took.

    Returns:
        max(1, masks / forwards left), rounded up, or 1 without a limit, int64 [B]; blanks that are
        no masks, bool [B, W]; zeros, int64 [B, W].
    """
    nothing = torch.zeros_like(masked, dtype=torch.int64)
    return owed(masked, limit, spent), blank & ~masked, nothing


def owed(masked: Tensor, limit: Tensor, spent: Tensor) -> Tensor:
    """The first of what `look` returns, of the same."""
    left = (limit - spent).clamp(min=1)
    return torch.where(limit > 0, -(-masked.sum(-1) // left), 1)


def judge(
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    masked: Tensor,
    editable: Tensor,
    advances: bool,
) -> tuple[Tensor, ...]:
    """Which rules a decision breaks, bool scalars.

    Args:
        changes: bool [B, W]: committed, edited and remasked columns, None for no column.
        masked: bool [B, W].
        editable: bool [B, W].
        advances: whether the third rule is one.

    Returns:
        Whether a column is committed that is no mask; whether one is edited or remasked that is not
        editable; whether a row with masks has no more commits than remasks.
    """
    commit, edit, remask = changes
    alien = (commit & ~masked).any()
    foul = torch.zeros_like(alien)
    for mask in (edit, remask):
        if mask is not None:
            foul = foul | (mask & ~editable).any()
    if not advances:
        return alien, foul
    return alien, foul, ((gain(commit, remask) < 1) & masked.any(-1)).any()


def gain(commit: Tensor, remask: Tensor | None) -> Tensor:
    """Net commits of each row: commits less remasks, int64 [B]."""
    commits = commit.sum(-1)
    return commits if remask is None else commits - remask.sum(-1)
