"""Top-k and top-p as Triton kernels: the last token kept of every row, without a sort.

The cut's logit is the largest t for which enough comes before it: at least k tokens with l >= t, or
at least the share p of the mass. Both fall as t rises, so t is found digit by digit. The
representable values of the logits are numbered in their order. A pass measures what lies above 15
thresholds that split the current bracket of numbers into 16, which determines 4 bits of t: 4
passes find any value of 16 bits, 8 passes any of 32. Then t is exact, and one more launch finds
which of the tokens that equal it is the last.

A program measures 4096 tokens of a row, and adds up what all programs of the row measured in the
previous pass. Every program therefore makes the same decision, and no pass waits for the host.
Within a program masses are float32 sums over its tokens. Across programs they are integers,
multiples of 2**-40 of the likeliest token's weight, which add exactly in any order. Neither
depends on N, so a row has the same cut in every batch.

Shapes: N rows, V vocabulary, K tiles, C = 4096 tokens of a program, G programs of a row.
"""

from typing import Final

import triton
import triton.language as tl

from dlm.kernels.triton_noise import value_of
from dlm.kernels.triton_scan import LOG2_E, LOWEST, PADDING, SUPPRESSED, read, temperature_of

CHUNK: Final = 4096
"""C, 16 tokens per lane of 8 warps: with 32 tokens and 16 thresholds the registers would spill."""
WARPS: Final = 8
"""Warps of a search program."""
SWEEP: Final = 16_384
"""Tokens at a time in the kernel with one program per row, of 16 warps."""
SWEEP_WARPS: Final = 16
"""Warps of a sweep program."""
DIGIT: Final = 4
"""Bits of t that a pass determines."""
SLOTS: Final = 1 << DIGIT
"""Numbers that a program stores per pass: one for each threshold, and one more."""
STATE: Final = 5
"""Numbers that a row carries from pass to pass: see `advance`."""
FLOAT32: Final = 0
"""Logits can be any float32."""
BFLOAT16: Final = 1
"""Logits are values of bfloat16, `LOWEST` or `SUPPRESSED`."""
FLOAT16: Final = 2
"""Logits are values of float16, `LOWEST` or `SUPPRESSED`."""

LAST_DIGIT: Final = tl.constexpr(SLOTS - 1)
DIGIT_BITS: Final = tl.constexpr(DIGIT)
SLOT_COUNT: Final = tl.constexpr(SLOTS)
STATE_COUNT: Final = tl.constexpr(STATE)
ANY_FLOAT: Final = tl.constexpr(FLOAT32)
BRAIN_FLOAT: Final = tl.constexpr(BFLOAT16)
UNIT: Final = tl.constexpr(2.0**40)


@triton.jit  # type: ignore[untyped-decorator]
def value_at(number, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The float32 with this number, in [-2**31, 2**31), or with 16 bits in [-2**15, 2**15).

    Numbers are ordered like the values, and the lowest one of 16 bits is `SUPPRESSED`. NaN at the
    upper end stays NaN, which no value reaches; NaN at the lower end becomes lower than any logit.
    """
    key = number.to(tl.int32)
    if FORMAT == ANY_FLOAT:
        value = value_of(key)
        lowest = tl.full((), float("-inf"), tl.float32)
        below = value != value
    else:
        bits = key ^ ((key >> 31) & 0x7FFF)
        if FORMAT == BRAIN_FLOAT:
            value = (bits << 16).to(tl.float32, bitcast=True)
        else:
            value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        lowest = tl.where(key > -0x8000, LOWEST, SUPPRESSED)
        below = (value >= LOWEST) == 0
    return tl.where((key < 0) & below, lowest, value)


@triton.jit
def fixed(mass):  # type: ignore[no-untyped-def]
    """Whole multiples of 2**-40 in a float32 of at most 2**22; int64."""
    return (mass * UNIT).to(tl.int64)


@triton.jit
def float64_of(low, high):  # type: ignore[no-untyped-def]
    """The float64 of two int32 halves: a float argument would arrive as float32."""
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def shift_of(step, counting, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bit position of the digit of a pass; int64."""
    number = tl.where(step < counting, step, step - counting)
    return (BITS - (number + 1) * DIGIT_BITS).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def advance(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    state, found, row, chunk_count, counting, top_k, share_low, share_high, step,
    CHUNKS: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """The state of a row before a pass, with the digit that the previous pass determined.

    Args:
        state: Pointer to int64 [N, STATE], the state before the previous pass.
        found: Pointer to int64 [N, G, SLOTS], what the previous pass measured.
        row: Which row.
        chunk_count: G.
        counting: Number of passes that count, 0 without top-k; the others weigh.
        top_k: k.
        share_low: Low half of the float64 p.
        share_high: High half.
        step: Number of the pass.
        CHUNKS: G rounded up to a power of 2.
        FORMAT: Format of the logits.

    Returns:
        Five int64: the number of t as far as it is known, what was measured above its bracket,
        what t has to reach, the number of the k-th largest logit, and how many tokens equal to it
        top-k keeps.
    """
    BITS: tl.constexpr = 32 if FORMAT == ANY_FLOAT else 16
    lowest = tl.full((), -(1 << (BITS - 1)), tl.int64)
    none = tl.full((), 0, tl.int64)
    if step == 0:
        number, above, target, floor, ties = lowest, none, none + top_k, lowest, none
    else:
        kept = state + row.to(tl.int64) * STATE_COUNT
        number, above, target = tl.load(kept), tl.load(kept + 1), tl.load(kept + 2)
        floor, ties = tl.load(kept + 3), tl.load(kept + 4)
        chunk, slot = tl.arange(0, CHUNKS)[:, None], tl.arange(0, SLOT_COUNT)
        place = (row.to(tl.int64) * chunk_count + chunk) * SLOT_COUNT + slot[None, :]
        measured = tl.sum(tl.load(found + place, mask=chunk < chunk_count, other=0), 0)
        if step == counting + 1:  # the first weighing pass left the total in the spare slot
            total = tl.sum(tl.where(slot == 0, measured, 0), 0)
            share = float64_of(share_low, share_high) * total.to(tl.float64)
            target = tl.ceil(share).to(tl.int64)  # at most the total, as p < 1
        shift = shift_of(step - 1, counting, BITS)
        # The tokens that top-k keeps have all the mass, even if sums in two orders differ.
        reached = (measured >= target) | (number + (slot.to(tl.int64) << shift) <= floor)
        digit = tl.sum(((slot == 0) | reached).to(tl.int32), 0) - 1
        if digit < LAST_DIGIT:
            above = tl.sum(tl.where(slot == digit + 1, measured, 0), 0)
        number += digit.to(tl.int64) << shift
        if step == counting:
            floor, ties = number, target - above
            number, above = lowest, none
    return number, above, target, floor, ties


@triton.jit  # type: ignore[untyped-decorator]
def weights_of(  # type: ignore[no-untyped-def]
    values, parts, tile_count, temperature, scale, row, live, TILES: tl.constexpr
):
    """exp((l - m) / T) of values of one row, with m from the maxima that `scan_kernel` stored."""
    tile = tl.arange(0, TILES)
    places = parts + (row.to(tl.int64) * tile_count + tile) * 4
    maximum = tl.max(tl.load(places, mask=tile < tile_count, other=PADDING), 0)
    speed = LOG2_E / temperature_of(temperature, scale, row, live)
    return tl.exp2((values - maximum) * speed)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "num_rows",
        "bonus_count",
        "counting",
        "top_k",
        "share_low",
        "share_high",
        "step",
    ]
)
def search_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    logits, row_stride, token_stride, num_rows, vocabulary, tile_count,
    suppressed, bonus_tokens, bonus_values, bonus_count, temperature, scale, parts,
    old_state, old_found, chunk_count, counting, top_k, share_low, share_high, step,
    state, found,
    WEIGH: tl.constexpr, CHUNK: tl.constexpr, FORMAT: tl.constexpr, CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """One pass: measure C tokens of a row above each of 15 thresholds.

    The first weighing pass also stores the mass of all that top-k keeps.

    Args:
        logits: As in `scan_kernel`.
        row_stride: Likewise.
        token_stride: Likewise.
        num_rows: Likewise.
        vocabulary: Likewise.
        tile_count: Likewise.
        suppressed: Likewise.
        bonus_tokens: Likewise.
        bonus_values: Likewise.
        bonus_count: Likewise.
        temperature: Pointer to float32 [N], T of the law to cut, or None for 1.
        scale: Pointer to float32 [N], or None.
        parts: What `scan_kernel` wrote, read by weighing passes.
        old_state: As in `advance`, and so are the arguments up to `step`.
        old_found: Likewise.
        chunk_count: Likewise.
        counting: Likewise.
        top_k: Likewise.
        share_low: Likewise.
        share_high: Likewise.
        step: Likewise.
        state: Pointer to int64 [N, STATE], written.
        found: Pointer to int64 [N, G, SLOTS], written.
        WEIGH: Whether this pass weighs; otherwise it counts.
        CHUNK: C.
        FORMAT: Format of the logits.
        CHUNKS: G rounded up to a power of 2, at least 2.
        TILES: K rounded up to a power of 2, at least 2.
    """
    BITS: tl.constexpr = 32 if FORMAT == ANY_FLOAT else 16
    program = tl.program_id(0)
    row, chunk = program // chunk_count, program % chunk_count
    live = row < num_rows
    values = read(
        logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
        bonus_count, row, chunk * CHUNK + tl.arange(0, CHUNK),
    )  # fmt: skip
    number, above, target, floor, ties = advance(
        old_state, old_found, row, chunk_count, counting, top_k, share_low, share_high, step,
        CHUNKS, FORMAT,
    )  # fmt: skip
    if chunk == 0:
        kept = state + row.to(tl.int64) * STATE_COUNT
        tl.store(kept, number)
        tl.store(kept + 1, above)
        tl.store(kept + 2, target)
        tl.store(kept + 3, floor)
        tl.store(kept + 4, ties)

    slot = tl.arange(0, SLOT_COUNT)
    digit = slot.to(tl.int64) << shift_of(step, counting, BITS)
    limits = value_at(tl.where(slot == 0, floor + 1, number + digit), FORMAT)
    if WEIGH:
        weights = weights_of(values, parts, tile_count, temperature, scale, row, live, TILES)
        reached = values[None, :] >= limits[:, None]
        measured = fixed(tl.sum(tl.where(reached, weights[None, :], 0.0), 1))
        if (step == counting) & (chunk == 0):
            last = value_at(floor, FORMAT)
            each = weights_of(last, parts, tile_count, temperature, scale, row, live, TILES)
            measured += tl.where(slot == 0, ties * fixed(each), 0)
    else:
        measured = tl.sum((values[None, :] >= limits[:, None]).to(tl.int32), 1).to(tl.int64)
    place = (row.to(tl.int64) * chunk_count + chunk) * SLOT_COUNT + slot
    tl.store(found + place, measured)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "num_rows",
        "bonus_count",
        "counting",
        "top_k",
        "share_low",
        "share_high",
        "step",
    ]
)
def last_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    logits, row_stride, token_stride, num_rows, vocabulary, tile_count,
    suppressed, bonus_tokens, bonus_values, bonus_count, temperature, scale, parts,
    old_state, old_found, chunk_count, counting, top_k, share_low, share_high, step,
    cut,
    WEIGH: tl.constexpr, SWEEP: tl.constexpr, FORMAT: tl.constexpr, CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """After the last pass, for one row: the token of the cut.

    Args:
        logits: As in `search_kernel`, and so are the others up to `step`.
        row_stride: Likewise.
        token_stride: Likewise.
        num_rows: Likewise.
        vocabulary: Likewise.
        tile_count: Likewise.
        suppressed: Likewise.
        bonus_tokens: Likewise.
        bonus_values: Likewise.
        bonus_count: Likewise.
        temperature: Likewise.
        scale: Likewise.
        parts: Likewise.
        old_state: Likewise.
        old_found: Likewise.
        chunk_count: Likewise.
        counting: Likewise.
        top_k: Likewise.
        share_low: Likewise.
        share_high: Likewise.
        step: Likewise.
        cut: Pointer to int32 [N, 2], written: bits of t, and the token.
        WEIGH: Whether the last pass weighed.
        SWEEP: Tokens of the row that are read at a time.
        FORMAT: As in `search_kernel`.
        CHUNKS: Likewise.
        TILES: Likewise.
    """
    row = tl.program_id(0)
    live = row < num_rows
    number, above, target, floor, ties = advance(
        old_state, old_found, row, chunk_count, counting, top_k, share_low, share_high, step,
        CHUNKS, FORMAT,
    )  # fmt: skip
    if WEIGH:
        value = value_at(number, FORMAT)
        # Next to the likeliest token this one may have a weight of 0.
        each = weights_of(value, parts, tile_count, temperature, scale, row, live, TILES)
        each = tl.maximum(fixed(each), 1)
        left = (target - above + each - 1) // each
    else:
        value, left = value_at(floor, FORMAT), ties

    ids = tl.arange(0, SWEEP)
    start = row * 0
    going = start == 0
    token = start
    while going:
        values = read(
            logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
            bonus_count, row, start + ids,
        )  # fmt: skip
        seen = tl.cumsum((values == value).to(tl.int32), 0)
        token = start + tl.sum((seen < left).to(tl.int32), 0)
        left -= tl.max(seen, 0)
        start += SWEEP
        going = (left > 0) & (start < vocabulary)
    tl.store(cut + row * 2, value.to(tl.int32, bitcast=True))
    # Rounding may require more tokens than equal t: then all of them are kept.
    tl.store(cut + row * 2 + 1, tl.minimum(token, vocabulary - 1))
