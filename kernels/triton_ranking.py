"""Ranks of the columns of a row by comparing each with each, as a Triton kernel.

A window has few columns: to compare them all takes less time than to launch one pass of a sort,
of which torch takes two and some launches around them.

Neither a width nor where memory begins makes another kernel, as in `triton_canvas`, but powers of
2 that widths are rounded up to.

Shapes: B rows, W columns.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=range(7))  # type: ignore[untyped-decorator]
def rank_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    scores, allowed, chosen, count, most, out, width,
    ORDER: tl.constexpr, TOP: tl.constexpr, COLUMNS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Rank of some columns of a row: how many stand in front, the allowed ones before the others.

    In front stands a higher score, NaN being above infinity, or an equal one on the left.

    Args:
        scores: Pointer to float32, float64 or int64 [B, W].
        allowed: Pointer to uint8 [B, W].
        chosen: Pointer to uint8 [B, W], whose columns score infinity and are marked in any case, or
            None; floats only.
        count: Pointer to int64 [B], how many to mark, or None for `most`.
        most: How many to mark in every row.
        out: Pointer to int64 [B, W], or uint8 where columns are marked, written.
        width: W.
        ORDER: Whether the column of each rank is written, not the rank of each column.
        TOP: Whether it is written which columns rank among the first.
        COLUMNS: W rounded up to a power of 2.
        SOME: Columns of a program.
    """
    row = tl.program_id(0).to(tl.int64) * width
    own, every = tl.program_id(1) * SOME + tl.arange(0, SOME), tl.arange(0, COLUMNS)
    mine, theirs = own < width, every < width
    score = tl.load(scores + row + own, mask=mine)
    other = tl.load(scores + row + every, mask=theirs)
    may = tl.load(allowed + row + own, mask=mine, other=0) != 0
    might = tl.load(allowed + row + every, mask=theirs, other=0) != 0
    if chosen is not None:
        marked = tl.load(chosen + row + own, mask=mine, other=0) != 0
        score = tl.where(marked, float("inf"), score)
        them = tl.load(chosen + row + every, mask=theirs, other=0) != 0
        other = tl.where(them, float("inf"), other)
    score, other = score[:, None], other[None, :]
    unknown, unknowns = score != score, other != other
    higher = (other > score) | (unknowns & ~unknown)
    equal = (other == score) | (unknowns & unknown)
    ahead = higher | (equal & (every[None, :] < own[:, None]))
    may_too, might_too = may[:, None], might[None, :]
    ahead = (might_too & ~may_too) | ((might_too == may_too) & ahead)
    rank = tl.sum((ahead & theirs[None, :]).to(tl.int32), 1)
    if ORDER:
        tl.store(out + row + rank, own.to(tl.int64), mask=mine)
    elif TOP:
        least = most
        if count is not None:
            least = tl.load(count + tl.program_id(0))
        among = may & (rank < least)
        if chosen is not None:
            among = among | marked
        tl.store(out + row + own, among.to(tl.uint8), mask=mine)
    else:
        tl.store(out + row + own, rank.to(tl.int64), mask=mine)
