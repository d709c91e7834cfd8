"""Ranks of the columns of a row by pairwise comparison, as a Triton kernel.

A window has few columns: comparing all pairs takes less time than launching one pass of a sort.
torch launches two passes, and more operations around them.

As in `triton_canvas`, neither a width nor a memory address compiles another kernel, except for
the powers of 2 to which widths are rounded up.

Shapes: B rows, W columns.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=range(7))  # type: ignore[untyped-decorator]
def rank_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    scores, allowed, chosen, count, most, out, width,
    ORDER: tl.constexpr, TOP: tl.constexpr, COLUMNS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Rank of some columns of a row: how many precede each, allowed columns before the others.

    A column precedes another if its score is higher, NaN being above infinity, or if the scores are
    equal and it is on the left.

    Args:
        scores: Pointer to float32, float64 or int64 [B, W].
        allowed: Pointer to uint8 [B, W].
        chosen: Pointer to uint8 [B, W], or None; floats only. Chosen columns score infinity, and
            are marked in any case.
        count: Pointer to int64 [B], how many to mark, or None for `most`.
        most: How many to mark in every row.
        out: Pointer to int64 [B, W], or uint8 if columns are marked, written.
        width: W.
        ORDER: Whether to write the column of each rank instead of the rank of each column.
        TOP: Whether to write which columns rank among the first.
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
