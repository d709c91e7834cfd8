"""Canvas updates of a denoising step, in plain torch: the reference of `fused_canvas`.

Shapes: B rows, L canvas, W window, N blocks of a row, Q queries, S stop tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of tokens, as in `dlm.canvas.Canvas`."""

    tokens: Tensor  # int64 [B, L]
    blank: Tensor  # bool [B, L], whether a token was a mask at the start
    start: Tensor  # int64 [B], first blank
    origin: Tensor  # int64 [B], where the first block begins
    stop: Tensor  # int64 [B], one past the last blank
    budget: Tensor  # int64 [B, N], forward passes of each block


@dataclass(frozen=True, slots=True, eq=False)
class Stops:
    """When a stop token ends a row."""

    ids: Tensor | None  # int64 [S]; None if no token ends a row
    eos_id: int  # fills the rest of the row
    settled: Literal["token", "block", "row"]
    """What no longer changes once it has no mask left: each token by itself, the blocks before the
    active one, or only the whole row."""


def write(
    tokens: Tensor,
    positions: Tensor,
    sampled: Tensor,
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    mask_id: int,
) -> Tensor:
    """Tokens [B, L] after a decision: committed, edited and remasked columns are replaced.

    Args:
        tokens: int64 [B, L].
        positions: int64 [B, W], canvas position of each window column; only the first of each row
            is read.
        sampled: int64 [B, W], tokens to commit or edit in.
        changes: bool [B, W]: committed, edited and remasked columns; None for no column.
        mask_id: token that replaces a remasked one.
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
    """Which canvas positions [B, L] the window covers, and the window column of each.

    This gathers into the canvas instead of scattering from the window: the columns of a short last
    block lie beyond the row, and no canvas position reads them.
    """
    column = torch.arange(width, device=positions.device) - positions[:, :1]
    inside = (column >= 0) & (column < positions.shape[1])
    return inside, column.clamp(0, positions.shape[1] - 1)


def stop(
    rows: Rows, begin: Tensor, hold: Tensor, mask_id: int, block_length: int, stops: Stops
) -> tuple[Tensor, Tensor]:
    """Fill rows after a final stop token; returns tokens [B, L] and which rows are done, bool [B].

    A row is done if it has no mask and does not hold its block, or if it has a final stop token.

    Args:
        rows: the rows after the decision was written.
        begin: int64 [B], where the active block begins.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        mask_id: id of the mask token.
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

    The active block contains the row's first mask, and never lies before the previous active block.

    Args:
        rows: rows; each one whose block is -1 has a mask.
        block: int64 [B], the active block so far, -1 before the first forward pass.
        hold: bool [B], rows that stay in their block whether or not it has a mask.
        mask_id: id of the mask token.
        block_length: positions of a block.
        width: W.
        cross_block: whether the window extends back to the first blank.
        ahead: number of blocks after the active one that the window includes.

    Returns:
        Active block and where it begins, int64 [B]; positions, clamped to the canvas, and their
        tokens, int64 [B, W]; masks and blanks within the window's blocks and the row, bool [B, W];
        forward passes of the active block, int64 [B].
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
    """A span of each row, and where a cache stores it.

    Args:
        tokens: int64 [B, L].
        blank: bool [B, L].
        begin: int64 [B], first column, which may lie before the row.
        end: int64 [B], one past the last column.
        count: Q; columns outside 0 to `end` go to the last column of the cache.
        room: the last column of the cache.
        halves: how many copies of the rows follow each other in the cache, 2 with guidance.

    Returns:
        Tokens and their columns, clamped to the canvas, int64 [B, Q]; whether they were given,
        bool [B, Q]; their slots among all columns of the cache, int64 [halves B, Q]; how many
        columns of each row lie between column 0 and `end`, int64 [B].
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
    """What a row must commit now to keep its budget, and which of its window is committed.

    Args:
        masked: bool [B, W].
        blank: bool [B, W].
        limit: int64 [B], forward passes the block may take, 0 for no limit.
        spent: int64 [B], forward passes it has taken.

    Returns:
        masks / forward passes left, rounded up and at least 1, or 1 without a limit, int64 [B];
        blanks that are not masked, bool [B, W]; zeros, int64 [B, W].
    """
    nothing = torch.zeros_like(masked, dtype=torch.int64)
    return owed(masked, limit, spent), blank & ~masked, nothing


def owed(masked: Tensor, limit: Tensor, spent: Tensor) -> Tensor:
    """The first value that `look` returns, from the same arguments."""
    left = (limit - spent).clamp(min=1)
    return torch.where(limit > 0, -(-masked.sum(-1) // left), 1)


def judge(
    changes: tuple[Tensor, Tensor | None, Tensor | None],
    masked: Tensor,
    editable: Tensor,
    advances: bool,
) -> tuple[Tensor, ...]:
    """Which rules a decision violates, bool scalars.

    Args:
        changes: bool [B, W]: committed, edited and remasked columns; None for no column.
        masked: bool [B, W].
        editable: bool [B, W].
        advances: whether the third rule applies.

    Returns:
        Whether a column is committed that is not masked; whether one is edited or remasked that is
        not editable; whether a row with masks has no more commits than remasks.
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
    """Net commits of each row: commits minus remasks, int64 [B]."""
    commits = commit.sum(-1)
    return commits if remask is None else commits - remask.sum(-1)
