"""Canvas updates of a denoising step, as Triton kernels, most of them with one program per row.

Each replaces some ten torch operations on a few hundred integers, whose cost is that of their
launches. Flags are bytes, as torch stores them.

`do_not_specialize` lists all arguments except constants, so no size of a canvas and no memory
address compiles another kernel. A kernel first compiled while a CUDA graph is recorded could not
be loaded.

Shapes: B rows, L canvas, W window, N blocks of a row, Q queries, S stop tokens.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=range(11))  # type: ignore[untyped-decorator]
def write_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    tokens, tokens_row, positions, sampled, commit, edit, remask, out, length, width, mask_id,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a decision to some columns of a row.

    Args:
        tokens: Pointer to int64 [B, L].
        tokens_row: Elements from row to row.
        positions: Pointer to int64 [B, W]; only the first of each row is read.
        sampled: Pointer to int64 [B, W].
        commit: Pointer to uint8 [B, W].
        edit: Pointer to uint8 [B, W], or None.
        remask: Pointer to uint8 [B, W], or None.
        out: Pointer to int64 [B, L], written.
        length: L.
        width: W.
        mask_id: Token that replaces a remasked one.
        BLOCK: Columns of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = place < length
    column = place - tl.load(positions + row * width)
    inside = live & (column >= 0) & (column < width)
    column += row * width
    change = tl.load(commit + column, mask=inside, other=0) != 0
    if edit is not None:
        change = change | (tl.load(edit + column, mask=inside, other=0) != 0)
    fresh = tl.load(sampled + column, mask=inside, other=0)
    if remask is not None:
        again = tl.load(remask + column, mask=inside, other=0) != 0
        change, fresh = change | again, tl.where(again, mask_id, fresh)
    kept = tl.load(tokens + row * tokens_row + place, mask=live, other=0)
    tl.store(out + row * length + place, tl.where(change, fresh, kept), mask=live)


@triton.jit
def opened(tokens, blank, place, live, mask_id):  # type: ignore[no-untyped-def]
    """Tokens of a row, whether they were masks at the start, and whether they still are."""
    token = tl.load(tokens + place, mask=live, other=0)
    empty = tl.load(blank + place, mask=live, other=0) != 0
    return token, empty, empty & (token == mask_id)


@triton.jit(do_not_specialize=range(16))  # type: ignore[untyped-decorator]
def stop_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    tokens, tokens_row, blank, blank_row, start, origin, begin, hold, ids, out, done,
    length, mask_id, eos_id, block_length, stops,
    BY_BLOCK: tl.constexpr, BY_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a row after a final stop token, and determine whether it is done.

    Args:
        tokens: Pointer to int64 [B, L].
        tokens_row: Elements from row to row.
        blank: Pointer to uint8 [B, L].
        blank_row: Elements from row to row.
        start: Pointer to int64 [B], first blank.
        origin: Pointer to int64 [B], where the first block begins.
        begin: Pointer to int64 [B], where the active block begins.
        hold: Pointer to uint8 [B], whether the row stays in its block.
        ids: Pointer to int64 [S], or None if no token ends a row.
        out: Pointer to int64 [B, L], written, or None likewise.
        done: Pointer to uint8 [B], written.
        length: L.
        mask_id: Id of the mask token.
        eos_id: Token that fills the rest of the row.
        block_length: Positions of a block.
        stops: S.
        BY_BLOCK: Whether a stop token is final only after its block is complete.
        BY_ROW: Whether a stop token is final only in a row without a mask.
        BLOCK: Columns at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    tokens, blank = tokens + row * tokens_row, blank + row * blank_row
    lane = tl.arange(0, BLOCK)
    masks, ends = lane * 0 + length, lane * 0 + length  # the first of each lane
    at = length * 0
    while at < length:  # not range, which fails in Triton 3.6's interpreter with numpy 2.4
        place = at + lane
        token, empty, open_ = opened(tokens, blank, place, place < length, mask_id)
        masks = tl.minimum(masks, tl.where(open_, place, length))
        if ids is not None:
            last = token != token
            number = stops * 0
            while number < stops:
                last = last | (token == tl.load(ids + number))
                number += 1
            ends = tl.minimum(ends, tl.where(empty & last, place, length))
        at += BLOCK
    first, stays = tl.min(masks, 0), tl.load(hold + row) != 0
    whole = (first == length) & (stays == 0)
    if ids is not None:
        final = first.to(tl.int64)
        if BY_ROW:
            final = tl.load(start + row)
        elif BY_BLOCK:
            final -= (final - tl.load(origin + row)) % block_length
            final = tl.where(stays, tl.load(begin + row), final)
        end = tl.min(ends, 0)
        ended = end < tl.where(whole, length, final)
        whole = whole | ended
        at = length * 0
        while at < length:
            place = at + lane
            live = place < length
            token, empty, _ = opened(tokens, blank, place, live, mask_id)
            filled = tl.where(empty & ended & (place > end), eos_id, token)
            tl.store(out + row * length + place, filled, mask=live)
            at += BLOCK
    tl.store(done + row, whole.to(tl.uint8))


@triton.jit(do_not_specialize=range(24))  # type: ignore[untyped-decorator]
def locate_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    tokens, tokens_row, blank, blank_row, start, origin, stop, budget, budget_row, block, hold,
    reached, opening, limit, positions, seen, masked, blanks,
    length, blocks, width, mask_id, block_length, reach,
    CROSS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The window of a row: the block with its first mask and some later ones, or all up to it.

    Args:
        tokens: Pointer to int64 [B, L].
        tokens_row: Elements from row to row.
        blank: Pointer to uint8 [B, L].
        blank_row: Elements from row to row.
        start: Pointer to int64 [B], first blank.
        origin: Pointer to int64 [B], where the first block begins.
        stop: Pointer to int64 [B], one past the last blank.
        budget: Pointer to int64 [B, N].
        budget_row: Elements from row to row.
        block: Pointer to int64 [B], the active block so far.
        hold: Pointer to uint8 [B], whether the row stays in it.
        reached: Pointer to int64 [B], written: the active block.
        opening: Pointer to int64 [B], written: where it begins.
        limit: Pointer to int64 [B], written: its budget.
        positions: Pointer to int64 [B, W], written.
        seen: Pointer to int64 [B, W], written: tokens.
        masked: Pointer to uint8 [B, W], written.
        blanks: Pointer to uint8 [B, W], written.
        length: L.
        blocks: N.
        width: W.
        mask_id: Id of the mask token.
        block_length: Positions of a block.
        reach: Positions of the active block and of the later blocks in the window.
        CROSS: Whether the window extends back to the first blank.
        COLUMNS: W rounded up to a power of 2.
        BLOCK: Columns of the canvas at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    tokens, blank = tokens + row * tokens_row, blank + row * blank_row
    lane = tl.arange(0, BLOCK)
    masks = lane * 0 + length
    at = length * 0
    while at < length:
        place = at + lane
        _, _, open_ = opened(tokens, blank, place, place < length, mask_id)
        masks = tl.minimum(masks, tl.where(open_, place, length))
        at += BLOCK
    first = tl.min(masks, 0)
    first = tl.where(first == length, 0, first)  # as arg max returns without a mask
    base, active = tl.load(origin + row), tl.load(block + row)
    # This rounds towards 0, not down: a negative value means no mask, and the row keeps its block.
    later = tl.maximum(active, (first - base) // block_length)
    active = tl.where(tl.load(hold + row) != 0, active, later)
    begin = base + active * block_length
    end = tl.minimum(begin + reach, tl.load(stop + row))
    known = (active >= 0) & (active < blocks)
    most = tl.load(budget + row * budget_row + active, mask=known, other=0)
    tl.store(reached + row, active)
    tl.store(opening + row, begin)
    tl.store(limit + row, most)
    column = tl.arange(0, COLUMNS)
    live = column < width
    place = column + (tl.load(start + row) if CROSS else begin)
    inside = live & (place < end)
    place = tl.minimum(place, length - 1)
    token, empty, open_ = opened(tokens, blank, place, live, mask_id)
    into = row * width + column
    tl.store(positions + into, place, mask=live)
    tl.store(seen + into, token, mask=live)
    tl.store(masked + into, (open_ & inside).to(tl.uint8), mask=live)
    tl.store(blanks + into, (empty & inside).to(tl.uint8), mask=live)


@triton.jit(do_not_specialize=range(15))  # type: ignore[untyped-decorator]
def stretch_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    tokens, tokens_row, blank, blank_row, begin, end, seen, places, given, slots, inside,
    length, count, rows, room,
    HALVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some columns of a span of a row, and where a cache stores them.

    Args:
        tokens: Pointer to int64 [B, L].
        tokens_row: Elements from row to row.
        blank: Pointer to uint8 [B, L].
        blank_row: Elements from row to row.
        begin: Pointer to int64 [B], first column.
        end: Pointer to int64 [B], one past the last.
        seen: Pointer to int64 [B, Q], written: tokens.
        places: Pointer to int64 [B, Q], written: their columns.
        given: Pointer to uint8 [B, Q], written.
        slots: Pointer to int64 [HALVES B, Q], written.
        inside: Pointer to int64 [B], written: how many columns of the span the row has.
        length: L.
        count: Q.
        rows: B.
        room: Last column of the cache, for columns that no row has.
        HALVES: How many copies of the rows follow each other in the cache.
        BLOCK: Columns of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < count
    first, last = tl.load(begin + row), tl.load(end + row)
    here = first + column
    place = tl.minimum(tl.maximum(here, 0), length - 1)
    into = row * count + column
    tl.store(places + into, place, mask=live)
    token = tl.load(tokens + row * tokens_row + place, mask=live, other=0)
    tl.store(seen + into, token, mask=live)
    empty = tl.load(blank + row * blank_row + place, mask=live, other=0)
    tl.store(given + into, (empty == 0).to(tl.uint8), mask=live)
    slot = tl.where((here >= 0) & (here < last), here, room)
    for half in tl.static_range(HALVES):
        one = row + half * rows
        tl.store(slots + one * count + column, one * (room + 1) + slot, mask=live)
    if tl.program_id(1) == 0:
        held = tl.minimum(first + count, last) - tl.maximum(first, 0)
        tl.store(inside + row, tl.maximum(held, 0))


@triton.jit(do_not_specialize=range(8))  # type: ignore[untyped-decorator]
def look_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    masked, blank, limit, spent, quota, editable, nothing, width,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a row must commit now, and what of its window is committed.

    Args:
        masked: Pointer to uint8 [B, W].
        blank: Pointer to uint8 [B, W].
        limit: Pointer to int64 [B], forward passes the block may take, 0 for no limit.
        spent: Pointer to int64 [B], forward passes it has taken.
        quota: Pointer to int64 [B], written.
        editable: Pointer to uint8 [B, W], written.
        nothing: Pointer to int64 [B, W], written: zeros.
        width: W.
        COLUMNS: W rounded up to a power of 2.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    live = column < width
    place = row * width + column
    open_ = tl.load(masked + place, mask=live, other=0) != 0
    empty = tl.load(blank + place, mask=live, other=0) != 0
    tl.store(editable + place, (empty & (open_ == 0)).to(tl.uint8), mask=live)
    tl.store(nothing + place, place * 0, mask=live)
    most = tl.load(limit + row)
    left = tl.maximum(most - tl.load(spent + row), 1)
    share = (tl.sum(open_.to(tl.int64), 0) + left - 1) // left
    tl.store(quota + row, tl.where(most > 0, share, 1))


@triton.jit(do_not_specialize=range(8))  # type: ignore[untyped-decorator]
def judge_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    commit, edit, remask, masked, editable, broken, rows, width,
    COLUMNS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Which rules a decision violates, several rows at a time; one program, as there is one answer.

    Args:
        commit: Pointer to uint8 [B, W].
        edit: Pointer to uint8 [B, W], or None.
        remask: Pointer to uint8 [B, W], or None.
        masked: Pointer to uint8 [B, W].
        editable: Pointer to uint8 [B, W].
        broken: Pointer to uint8 [3], written: what `canvas.judge` returns.
        rows: B.
        width: W.
        COLUMNS: W rounded up to a power of 2.
        SOME: Rows at a time.
    """
    line, column = tl.arange(0, SOME)[:, None], tl.arange(0, COLUMNS)[None, :]
    alien = tl.zeros((SOME, COLUMNS), tl.int32)
    foul = tl.zeros((SOME, COLUMNS), tl.int32)
    stuck = tl.zeros((SOME,), tl.int32)
    at = rows * 0
    while at < rows:
        live = (at + line < rows) & (column < width)
        place = (at + line).to(tl.int64) * width + column
        taken = tl.load(commit + place, mask=live, other=0) != 0
        open_ = tl.load(masked + place, mask=live, other=0) != 0
        alien = alien | (taken & (open_ == 0)).to(tl.int32)
        gain = taken.to(tl.int32)
        if edit is not None or remask is not None:
            fixed = tl.load(editable + place, mask=live, other=0) == 0
        if edit is not None:
            foul = foul | (fixed & (tl.load(edit + place, mask=live, other=0) != 0)).to(tl.int32)
        if remask is not None:
            again = (tl.load(remask + place, mask=live, other=0) != 0).to(tl.int32)
            foul, gain = foul | (fixed.to(tl.int32) & again), gain - again
        idle = (tl.sum(gain, 1) < 1) & (tl.max(open_.to(tl.int32), 1) != 0)
        stuck = stuck | idle.to(tl.int32)
        at += SOME
    tl.store(broken, tl.max(tl.max(alien, 1), 0).to(tl.uint8))
    tl.store(broken + 1, tl.max(tl.max(foul, 1), 0).to(tl.uint8))
    tl.store(broken + 2, tl.max(stuck, 0).to(tl.uint8))
