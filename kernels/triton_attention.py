"""Attention of a few queries of each row to many keys, as Triton kernels.

With 32 heads and 32 queries, one program per head gives 32 programs, a quarter of the processors
of an H100. So a program computes only some of the keys (flash decoding, Dao et al. 2023), and a
second kernel combines the parts of a query.

The first 512 keys are split into parts of 128, as a short prompt gives too few programs otherwise.
Later keys are split into parts of 256, as each part adds to the work of combining. The split
depends on neither the number of rows nor the longest of them, and a part that a query does not
see adds nothing, so a row has the same bits in every batch. If there are more programs than can
run at a time, those whose keys no query sees exit at once and read none.

Shapes: B rows, Q queries of each, H heads, G heads of keys, S keys, E head width, P parts.
"""

from typing import Final

import triton
import triton.language as tl

NEAR: Final = tl.constexpr(4)
"""The first programs of a row and a head, which take few keys."""
FEW: Final = tl.constexpr(128)
"""Keys of each of those programs."""
MANY: Final = tl.constexpr(256)
"""Keys of each later program."""
LOG2_E: Final = tl.constexpr(1.4426950408889634)


def parts_of(seen: int) -> int:
    """Number of programs for the keys of a row and a head, of which there are `seen`."""
    few, many = int(FEW.value), int(MANY.value)
    near = min(seen, int(NEAR.value) * few)
    return -(-near // few) + -(-(seen - near) // many)


@triton.jit  # type: ignore[untyped-decorator]
def look(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    question, keys, values, mask, scaling, first, seen, live, mask_query,
    GROUPS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of queries to some keys of a row and a head: m, sum 2^(s - m), and that times v."""
    queries: tl.constexpr = question.shape[0]
    width: tl.constexpr = question.shape[1]
    asked, column = tl.arange(0, queries), tl.arange(0, width)
    top = tl.full((queries,), float("-inf"), tl.float32)
    total = tl.zeros((queries,), tl.float32)
    answer = tl.zeros((queries, width), tl.float32)
    for start in tl.range(0, CHUNK, BLOCK, num_stages=STAGES):
        index = first + start + tl.arange(0, BLOCK)
        inside = index < seen
        here = index.to(tl.int64) * (GROUPS * width)
        key = tl.load(keys + here[None, :] + column[:, None], mask=inside[None, :], other=0.0)
        value = tl.load(values + here[:, None] + column[None, :], mask=inside[:, None], other=0.0)
        score = tl.dot(question, key) * (scaling * LOG2_E)
        known = inside[None, :]
        if mask is not None:
            flag = mask + asked[:, None] * mask_query + index[None, :]
            known = known & (tl.load(flag, mask=known & live[:, None], other=0) != 0)
        score = tl.where(known, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A query that has seen no key yet has a maximum of -inf, which must not be subtracted.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp2(score - level[:, None])
        fade = tl.exp2(top - level)
        total = total * fade + tl.sum(share, 1)
        answer = answer * fade[:, None] + tl.dot(share.to(value.dtype), value)
        top = higher
    return top, total, answer


@triton.jit  # type: ignore[untyped-decorator]
def shows(  # type: ignore[no-untyped-def]
    mask, first, end, live, mask_query, CHUNK: tl.constexpr,
):  # fmt: skip
    """Whether any query sees any key of a row from `first` up to `end`, int32."""
    index = first + tl.arange(0, CHUNK)
    asked = tl.arange(0, live.shape[0])
    one = (asked == 0) | (mask_query != 0)  # one is enough if all queries see the same keys
    flag = mask + asked[:, None] * mask_query + index[None, :]
    inside = (index < end)[None, :] & (live & one)[:, None]
    return tl.max(tl.max(tl.load(flag, mask=inside, other=0).to(tl.int32), 1), 0)


@triton.jit(do_not_specialize=["queries", "seen", "room"])  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    query, keys, values, mask, mask_row, mask_query, scaling, sums, weighed, queries, seen, room,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    SKIP: tl.constexpr,
):  # fmt: skip
    """Attention of a row's queries in a head to some keys: m, sum 2^(s - m), and that times v.

    Args:
        query: Pointer to half precision [B, Q, H, E].
        keys: Pointer to [B, room, G, E].
        values: Pointer to [B, room, G, E].
        mask: Pointer to uint8 [B, Q or 1, S], 0 at keys that are not seen, or None.
        mask_row: Elements of the mask from row to row.
        mask_query: Elements from query to query, 0 if all queries see the same keys.
        scaling: float32, factor of q k.
        sums: Pointer to float32 [P, B H, Q, 2], written; for skipped parts only m, as -inf.
        weighed: Pointer to float32 [P, B H, Q, E], written except for skipped parts.
        queries: Q.
        seen: S.
        room: Keys that a row has memory for.
        HEADS: H.
        GROUPS: G.
        WIDTH: E.
        QUERIES: Q rounded up to a power of 2, at least 16.
        SKIP: Whether to look at the mask first, and skip parts whose keys no query sees.
    """
    program = tl.program_id(0)
    row, head = (program // HEADS).to(tl.int64), program % HEADS
    group = head // (HEADS // GROUPS)
    asked, column = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    live = asked < queries
    place = ((row * queries + asked)[:, None] * HEADS + head) * WIDTH + column[None, :]
    question = tl.load(query + place, mask=live[:, None], other=0.0)
    base = (row * room * GROUPS + group) * WIDTH
    keys, values = keys + base, values + base
    if mask is not None:
        mask += row * mask_row
    number = tl.program_id(1)
    part = (number * tl.num_programs(0) + program).to(tl.int64) * queries + asked
    if SKIP:
        begin = tl.where(number < NEAR, number * FEW, NEAR * FEW + (number - NEAR) * MANY)
        end = tl.minimum(seen, begin + tl.where(number < NEAR, FEW, MANY))
        if shows(mask, begin, end, live, mask_query, MANY) == 0:
            tl.store(sums + part * 2, tl.full((QUERIES,), float("-inf"), tl.float32), mask=live)
            return
    if number < NEAR:
        top, total, answer = look(
            question, keys, values, mask, scaling, number * FEW, seen, live, mask_query,
            GROUPS, FEW, FEW, 2,
        )  # fmt: skip
    else:
        first = NEAR * FEW + (number - NEAR) * MANY
        top, total, answer = look(
            question, keys, values, mask, scaling, first, seen, live, mask_query,
            GROUPS, MANY, MANY // 4, 3,
        )  # fmt: skip
    tl.store(weighed + part[:, None] * WIDTH + column[None, :], answer, mask=live[:, None])
    tl.store(sums + part * 2, top, mask=live)
    tl.store(sums + part * 2 + 1, total, mask=live)


@triton.jit(do_not_specialize=["queries", "parts", "every"])  # type: ignore[untyped-decorator]
def combine_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    sums, weighed, out, queries, parts, every,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Combine the parts of one query and head, several at a time.

    Args:
        sums: Pointer to float32 [P, B H, Q, 2], as `attend_kernel` wrote it.
        weighed: Pointer to float32 [P, B H, Q, E], likewise.
        out: Pointer to half precision [B, Q, H, E], written.
        queries: Q.
        parts: P.
        every: B H.
        HEADS: H.
        WIDTH: E.
        SOME: Parts at a time, whatever P is.
    """
    program, asked = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    place = program.to(tl.int64) * queries + asked
    step = every.to(tl.int64) * queries
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    answer = tl.zeros((WIDTH,), tl.float32)
    part = parts * 0
    while part < parts:  # not range, which fails in Triton 3.6's interpreter with numpy 2.4
        index = part + tl.arange(0, SOME)
        live = index < parts
        places = place + index * step
        tops = tl.load(sums + places * 2, mask=live, other=float("-inf"))
        live = live & (tops != float("-inf"))  # skipped parts have nothing else
        higher = tl.maximum(top, tl.max(tops, 0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        fade, shares = tl.exp2(top - level), tl.exp2(tops - level)
        total = total * fade
        total += tl.sum(shares * tl.load(sums + places * 2 + 1, mask=live, other=0.0), 0)
        here = weighed + places[:, None] * WIDTH + column[None, :]
        answers = tl.load(here, mask=live[:, None], other=0.0)
        answer = answer * fade + tl.sum(shares[:, None] * answers, 0)
        top = higher
        part += SOME
    answer /= tl.where(total > 0, total, 1.0)  # a query that sees nothing gets 0
    row, head = (program // HEADS).to(tl.int64), program % HEADS
    place = ((row * queries + asked) * HEADS + head) * WIDTH + column
    tl.store(out + place, answer.to(out.dtype.element_ty))
