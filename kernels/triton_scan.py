"""The scan as a Triton kernel: one read of the logits leaves four numbers per tile.

A program computes one tile of four rows. 32 rows of 126,464 bfloat16 tokens are 8 blocks of rows
times 124 tiles: 992 programs of 8 KB, enough to keep 132 processors loading at once without a
loop. A block of rows reads the mask of suppressed tokens once. The four numbers take 16 bytes,
next to the 2048 of a tile. Neither the shape of a program nor the order of its sums depends on N,
so a row has the same bits in every batch.

Shapes: N rows, R rows of a program, V vocabulary, K tiles, W = 1024 tokens of a tile, J bonuses,
P tokens of a warp's load.
"""

from typing import Final

import triton
import triton.language as tl

from dlm.kernels import tiles

LOWEST: Final = tl.constexpr(tiles.LOWEST)
SUPPRESSED: Final = tl.constexpr(tiles.SUPPRESSED)
PADDING: Final = tl.constexpr(tiles.PADDING)
LOG2_E: Final = tl.constexpr(1.4426950408889634)
COLDEST: Final = tl.constexpr(tiles.TEMPERATURES[0])
HOTTEST: Final = tl.constexpr(tiles.TEMPERATURES[1])

PARTS: Final = 4
"""Numbers per tile: maximum, mass of the first law, mass and moment of the scored law."""
ROWS: Final = 4
"""R, and the number of warps of a program."""
LOAD: Final = 512
"""Bytes that a warp loads at once, 16 per lane."""


@triton.jit
def bounded(each):  # type: ignore[no-untyped-def]
    """Temperatures within `tiles.TEMPERATURES`; NaN stays NaN."""
    each = tl.where(each < COLDEST, COLDEST, each)
    return tl.where(each > HOTTEST, HOTTEST, each)


@triton.jit
def temperature_of(temperature, scale, rows, live):  # type: ignore[no-untyped-def]
    """T / s of rows, within `tiles.TEMPERATURES`; a NaN scale stays NaN.

    Args:
        temperature: Pointer to float32 [N], T, or None for 1.
        scale: Pointer to float32 [N], or None for 1.
        rows: Which rows, of any shape.
        live: bool, rows that exist.
    """
    each = tl.full(rows.shape, 1.0, tl.float32)
    if temperature is not None:
        each = bounded(tl.load(temperature + rows, mask=live, other=1.0))
    if scale is not None:
        each = bounded(tl.math.div_rn(each, tl.load(scale + rows, mask=live, other=1.0)))
    return each


@triton.jit
def last_of(cut, rows, live):  # type: ignore[no-untyped-def]
    """The last token kept of rows of any shape: logits and ids, float32 and int32 of that shape.

    Args:
        cut: Pointer to int32 [N, 2], bits of the logit and id.
        rows: Which rows.
        live: bool, rows that exist.
    """
    place = cut + rows * 2
    value = tl.load(place, mask=live, other=0).to(tl.float32, bitcast=True)
    return value, tl.load(place + 1, mask=live, other=0)


@triton.jit
def dropped(values, ids, last_value, last_token):  # type: ignore[no-untyped-def]
    """`Cut.drops`: whether tokens come after the last one kept. NaN never does, so it shows."""
    return (values < last_value) | ((values == last_value) & (ids > last_token))


@triton.jit
def add_bonus(values, ids, bonus_tokens, bonus_values, bonus_count, row):  # type: ignore[no-untyped-def]
    """Values of tokens `ids` of one row, of any shape, plus the row's bonus."""
    place = row.to(tl.int64) * bonus_count
    end = place + bonus_count
    while place < end:  # not range, which fails in Triton 3.6's interpreter with numpy 2.4
        token = tl.load(bonus_tokens + place).to(tl.int32)
        extra = tl.load(bonus_values + place)
        values += tl.where(ids == token, extra, 0.0)
        place += 1
    return values


@triton.jit
def read(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
    bonus_count, row, ids,
):  # fmt: skip
    """Read like `TiledLogits`: float32 of tokens `ids` of one row, of their shape."""
    inside = (ids >= 0) & (ids < vocabulary)
    place = row.to(tl.int64) * row_stride + ids.to(tl.int64) * token_stride
    values = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
    values = tl.maximum(values, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    if bonus_tokens is not None:
        values = add_bonus(values, ids, bonus_tokens, bonus_values, bonus_count, row)
    if suppressed is not None:
        banned = tl.load(suppressed + ids, mask=inside, other=0)
        values = tl.where(banned != 0, SUPPRESSED, values)
    return tl.where(inside, values, PADDING)


@triton.jit  # type: ignore[untyped-decorator]
def add_bonuses(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    values, ids, tile, bonus_tokens, bonus_values, bonus_count, rows, live, WIDTH: tl.constexpr
):
    """A tile of several rows, float32 [R W / P, P], plus their bonuses.

    There are few bonuses and many tiles, so most tiles have none: the block is changed only by
    bonuses that fall into it.
    """
    start = rows.to(tl.int64) * bonus_count
    index = bonus_count * 0
    while index < bonus_count:
        token = tl.load(bonus_tokens + start + index, mask=live, other=-1).to(tl.int32)
        here = (token >= 0) & (token // WIDTH == tile)
        if tl.max(here.to(tl.int32), 0) > 0:
            extra = tl.load(bonus_values + start + index, mask=here, other=0.0)
            values += tl.where(ids == token[:, None], extra[:, None], 0.0)
        index += 1
    return values


@triton.jit  # type: ignore[untyped-decorator]
def suppress(values, suppressed, ids, inside, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of several rows, float32 [R W / P, P], with suppressed tokens replaced."""
    # Load as many mask tokens at once as logits: otherwise the compiler would move the logits
    # between warps, to match its layout of the mask.
    each: tl.constexpr = SPAN // 32
    mask = tl.max_contiguous(tl.multiple_of(suppressed + ids, (1, each)), (1, each))
    return tl.where(tl.load(mask, mask=inside, other=0) != 0, SUPPRESSED, values)


@triton.jit  # type: ignore[untyped-decorator]
def weigh(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    values, gaps, tile, temperature, scale, cut, rows, live, WIDTH: tl.constexpr, SPAN: tl.constexpr
):
    """exp(gap / T) of a tile of several rows, 0 for what the cut drops; float32 [W / P, R, P]."""
    speed = LOG2_E / temperature_of(temperature, scale, rows, live)
    weights = tl.exp2(gaps * speed[None, :, None])
    if cut is not None:
        spans = tile * WIDTH + tl.arange(0, WIDTH // SPAN) * SPAN
        ids = spans[:, None, None] + tl.arange(0, SPAN)[None, None, :]
        value, token = last_of(cut, rows, live)
        gone = dropped(values, ids, value[None, :, None], token[None, :, None])
        weights = tl.where(gone, 0.0, weights)
    return weights


@triton.jit(do_not_specialize=["num_rows", "bonus_count"])  # type: ignore[untyped-decorator]
def scan_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    logits, row_stride, token_stride, num_rows, vocabulary, tile_count,
    suppressed, bonus_tokens, bonus_values, bonus_count,
    first_temperature, first_scale, first_cut, second_temperature, second_scale, second_cut, parts,
    LAWS: tl.constexpr, ENTROPY: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """Compute for one tile of R rows: m_k, sum exp((l - m_k) / T) and sum (l - m_k) exp(...).

    m_k is the maximum of all tokens; sums run over those that the cut of a law keeps.

    Sums are relative to the tile's own maximum, as that of the row is not known yet. `draw_kernel`
    rescales them to one maximum, at the cost of one multiplication per tile.

    A NaN or +inf logit makes every sum of its tile NaN. `tl.max` may ignore a NaN, so m_k is set
    from the first sum.

    A warp of 32 lanes, which load 16 bytes each, spans P tokens. The block is [R W / P, P], where
    line i belongs to row i mod R, and the compiler assigns lines to R warps in turn. A row thus
    belongs to one warp, and its sums need no other warp. As [W / P, R, P] each lane sums the lines
    of a row first, before the sum over lanes.

    Args:
        logits: Pointer to any floating dtype [N, V].
        row_stride: Elements from row to row.
        token_stride: Elements from token to token.
        num_rows: N.
        vocabulary: V.
        tile_count: K.
        suppressed: Pointer to uint8 [V], or None.
        bonus_tokens: Pointer to int64 [N, J], or None.
        bonus_values: Pointer to float32 [N, J], or None.
        bonus_count: J.
        first_temperature: Pointer to float32 [N], T of the drawn law, or of the scored one if there
            is no other; or None for 1.
        first_scale: Pointer to float32 [N], or None.
        first_cut: Pointer to int32 [N, 2], the last token kept, or None if all are kept.
        second_temperature: Likewise, of the scored law if it differs from the drawn one.
        second_scale: Pointer to float32 [N], or None.
        second_cut: Pointer to int32 [N, 2], or None.
        parts: Pointer to float32 [N, K, PARTS], written.
        LAWS: How many laws are weighed: 0, 1 or 2.
        ENTROPY: Whether the scored law needs its moment.
        ROWS: R.
        WIDTH: W.
        SPAN: P, 512 bytes of logits.
    """
    program = tl.program_id(0)
    tile = program % tile_count
    first_row = program // tile_count * ROWS
    line = tl.arange(0, ROWS * WIDTH // SPAN)
    line_row = first_row + line % ROWS
    exists = line_row < num_rows
    ids = tile * WIDTH + (line // ROWS)[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    inside = ids < vocabulary
    place = line_row.to(tl.int64)[:, None] * row_stride + ids.to(tl.int64) * token_stride
    values = tl.load(logits + place, mask=exists[:, None] & inside, other=0.0).to(tl.float32)
    values = tl.maximum(values, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    if bonus_tokens is not None:
        values = add_bonuses(
            values, ids, tile, bonus_tokens, bonus_values, bonus_count, line_row, exists, WIDTH
        )
    if suppressed is not None:
        # Suppressed tokens are few and close together: most tiles only find that they have none.
        flat = tile * WIDTH + tl.arange(0, WIDTH)
        some = tl.max(tl.load(suppressed + flat, mask=flat < vocabulary, other=0).to(tl.int32), 0)
        if some > 0:
            values = suppress(values, suppressed, ids, inside, SPAN)
    if tile == tile_count - 1:
        values = tl.where(inside, values, PADDING)

    rows = first_row + tl.arange(0, ROWS)
    live = rows < num_rows
    values = tl.reshape(values, (WIDTH // SPAN, ROWS, SPAN))
    maximum = tl.max(tl.max(values, 0), 1)
    nothing = tl.zeros((ROWS,), tl.float32)
    if LAWS == 0:
        mass, other_mass, moment = nothing, nothing, nothing
        broken = tl.max(tl.max((values != values).to(tl.int32), 0), 1) > 0
    else:
        gaps = values - maximum[None, :, None]
        weights = weigh(
            values, gaps, tile, first_temperature, first_scale, first_cut, rows, live, WIDTH, SPAN
        )
        mass = tl.sum(tl.sum(weights, 0), 1)
        broken = mass != mass
        other_mass, moment = nothing, nothing
        if LAWS == 2:
            weights = weigh(
                values, gaps, tile, second_temperature, second_scale, second_cut, rows, live,
                WIDTH, SPAN,
            )  # fmt: skip
            other_mass = tl.sum(tl.sum(weights, 0), 1)
        if ENTROPY:
            # Kept finite, so that weights of 0 have a moment of 0.
            moment = tl.sum(tl.sum(tl.maximum(gaps, LOWEST) * weights, 0), 1)
    maximum = tl.where(broken & (maximum < float("inf")), float("nan"), maximum)
    # One store of 16 bytes per row: four stores would each wait for all warps of the program.
    left = tl.reshape(tl.join(tl.join(maximum, other_mass), tl.join(mass, moment)), (ROWS, 4))
    out = (rows.to(tl.int64) * tile_count + tile)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(parts + out, left, mask=live[:, None])
