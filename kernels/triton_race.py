"""The stage after the scan as one Triton kernel: both heats of the race, and the statistics.

One program of four warps per row. It reads four numbers of each tile, then the tile that wins, the
tile of the arg max if the margin is requested, and one or two tokens.

Shapes: N rows, V vocabulary, K tiles, W = 1024 tokens of a tile, J bonuses.
"""

from typing import Final

import triton
import triton.language as tl

from dlm.kernels import noise
from dlm.kernels.triton_noise import first_best, race, row_key, words
from dlm.kernels.triton_scan import LOWEST, PADDING, dropped, last_of, read, temperature_of

TILE_RACE: Final = tl.constexpr(noise.TILE_RACE)
TOKEN_RACE: Final = tl.constexpr(noise.TOKEN_RACE)

FIELDS: Final = (
    "maximum",
    "confidence",
    "margin",
    "entropy",
    "token_probability",
    "token_log_probability",
    "sampled_log_probability",
)
"""Rows of the table that the kernel writes."""


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1 of a float32 not above 0; a Taylor series where that would lose digits.

    Nine terms leave an error below 4e-10 of the value at -1/2.
    """
    series = 1.0 + x / 9.0
    for index in tl.static_range(7):
        series = 1.0 + x / (8.0 - index) * series
    return tl.where(x > -0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def exponent(value, token, maximum, temperature, cut, row, live):  # type: ignore[no-untyped-def]
    """(l - m) / T of one token, -inf if the law gives it no mass."""
    gap = value - maximum
    out = gap < LOWEST / 2
    if cut is not None:
        last_value, last_token = last_of(cut, row, live)
        out |= dropped(value, token, last_value, last_token)
    none = tl.full((), float("-inf"), tl.float32)
    return tl.where(out, none, tl.math.div_rn(gap, temperature))


@triton.jit
def tile_weights(maxima, maximum, exists, temperature):  # type: ignore[no-untyped-def]
    """Gaps m_k - m of tiles and their weights exp((m_k - m) / T); float32 [K] twice."""
    gaps = tl.where(exists, maxima - maximum, 0.0)
    return gaps, tl.exp(tl.math.div_rn(gaps, temperature))


@triton.jit(do_not_specialize=["num_rows", "bonus_count"])  # type: ignore[untyped-decorator]
def draw_kernel(  # type: ignore[no-untyped-def]  # noqa: C901, PLR0913 (a kernel takes pointers)
    logits, row_stride, token_stride, num_rows, vocabulary, tile_count,
    suppressed, bonus_tokens, bonus_values, bonus_count,
    first_temperature, first_scale, first_cut, second_temperature, second_scale, second_cut, parts,
    tokens, key_seed, key_row, key_position, key_draw, sampled, table,
    LAWS: tl.constexpr, ENTROPY: tl.constexpr, MARGIN: tl.constexpr, RACE: tl.constexpr,
    TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sample one row, and compute its statistics from the results of the scan.

    With f_k = exp((m_k - m) / T) and the tiles' sums s_k, Z = sum f_k s_k, and the moment of the
    row is sum f_k (moment_k + (m_k - m) s_k).

    Args:
        logits: As in `scan_kernel`, and so are the arguments up to `parts`.
        row_stride: Likewise.
        token_stride: Likewise.
        num_rows: Likewise.
        vocabulary: Likewise.
        tile_count: Likewise.
        suppressed: Likewise.
        bonus_tokens: Likewise.
        bonus_values: Likewise.
        bonus_count: Likewise.
        first_temperature: Likewise.
        first_scale: Likewise.
        first_cut: Likewise.
        second_temperature: Likewise.
        second_scale: Likewise.
        second_cut: Likewise.
        parts: What `scan_kernel` wrote.
        tokens: Pointer to int64 [N], or None.
        key_seed: Pointer to int64 [N], or None at T = 0.
        key_row: Likewise.
        key_position: Likewise.
        key_draw: Likewise.
        sampled: Pointer to int64 [N], written.
        table: Pointer to float32 [FIELDS, N]; the requested rows are written.
        LAWS: As in `scan_kernel`.
        ENTROPY: Likewise.
        MARGIN: Whether the margin is requested.
        RACE: Whether to sample from the first law; otherwise the arg max is taken.
        TILES: K rounded up to a power of 2, at least 2.
        WIDTH: W.
    """
    row = tl.program_id(0)
    out = table + row
    index = tl.arange(0, TILES)
    exists = index < tile_count
    places = parts + (row.to(tl.int64) * tile_count + index) * 4
    lanes = tl.arange(0, WIDTH)

    maxima = tl.load(places, mask=exists, other=PADDING)
    maximum, best_tile = first_best(maxima)
    live = row < num_rows
    first = temperature_of(first_temperature, first_scale, row, live)
    tl.store(out, maximum)

    # The sample, the arg max and the runner-up.
    if LAWS > 0:
        masses = tl.load(places + 1, mask=exists, other=0.0)
        gaps, weights = tile_weights(maxima, maximum, exists, first)
        mass = weights * masses
        partition = tl.sum(mass, 0)
    if RACE:
        k0, k1 = row_key(tl.load(key_seed + row), tl.load(key_row + row))
        position, draw = tl.load(key_position + row), tl.load(key_draw + row)
        high, low = words(TILE_RACE, tl.arange(0, TILES // 2), position, draw, k0, k1)
        tile = race(tl.where(exists, mass, -1.0), high, low)
        values = read(
            logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
            bonus_count, row, tile * WIDTH + lanes,
        )  # fmt: skip
        if first_cut is not None:
            last_value, last_token = last_of(first_cut, row, live)
            gone = dropped(values, tile * WIDTH + lanes, last_value, last_token)
            values = tl.where(gone, PADDING, values)
        top, _ = first_best(values)
        pairs = tile * (WIDTH // 2) + tl.arange(0, WIDTH // 2)
        high, low = words(TOKEN_RACE, pairs, position, draw, k0, k1)
        lane = race(tl.exp(tl.math.div_rn(values - top, first)), high, low)
    else:
        tile = best_tile
    if MARGIN or not RACE:
        values = read(
            logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
            bonus_count, row, best_tile * WIDTH + lanes,
        )  # fmt: skip
        _, best_lane = first_best(values)
        if not RACE:
            lane = best_lane
    # A broken row may give a lane beyond the vocabulary.
    token = tl.minimum(tile * WIDTH + lane, vocabulary - 1)
    tl.store(sampled + row, token.to(tl.int64))
    value = read(
        logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens, bonus_values,
        bonus_count, row, token,
    )  # fmt: skip
    if RACE:
        power = exponent(value, token, maximum, first, first_cut, row, live)
        tl.store(out + 6 * num_rows, power - tl.log(partition))
    else:
        tl.store(out + 6 * num_rows, maximum - maximum)  # 0, but NaN in a broken row

    # The statistics, of the scored law.
    if LAWS > 0:
        scored, cut = first, first_cut
        if LAWS == 2:
            scored, cut = temperature_of(second_temperature, second_scale, row, live), second_cut
            masses = tl.load(places + 2, mask=exists, other=0.0)
            gaps, weights = tile_weights(maxima, maximum, exists, scored)
            mass = weights * masses
            partition = tl.sum(mass, 0)
        power = exponent(value, token, maximum, scored, cut, row, live)
        tl.store(out + num_rows, tl.exp(power) / partition)
        if MARGIN:
            others = tl.max(tl.where(index == best_tile, PADDING, maxima), 0)
            inside = tl.max(tl.where(lanes == best_lane, PADDING, values), 0)
            gap = tl.maximum(others, inside) - maximum
            if cut is not None:
                # Kept tokens are a prefix of (logit, id): if it ends here, only one is kept.
                last_value, last_token = last_of(cut, row, live)
                alone = (last_value == maximum) & (last_token == best_tile * WIDTH + best_lane)
                alone |= tl.maximum(others, inside) < last_value
                gap = tl.where(alone, float("-inf"), gap)
            tl.store(out + 2 * num_rows, -expm1(tl.math.div_rn(gap, scored)) / partition)
        if ENTROPY:
            moments = tl.load(places + 3, mask=exists, other=0.0)
            # Multiply f_k s_k first: it is 0 where f_k is; (m_k - m) s_k may overflow float32.
            # The gap is kept finite, as tiles of mass 0 have a moment of 0.
            moment = tl.sum(weights * moments + tl.maximum(gaps, LOWEST) * mass, 0)
            mean = tl.math.div_rn(tl.math.div_rn(moment, partition), scored)
            tl.store(out + 3 * num_rows, tl.log(partition) - mean)
        if tokens is not None:
            asked = tl.load(tokens + row)
            value = read(
                logits, row_stride, token_stride, vocabulary, suppressed, bonus_tokens,
                bonus_values, bonus_count, row, asked,
            )  # fmt: skip
            # A kernel cannot raise: a token that does not exist gets the probability NaN.
            known = (asked >= 0) & (asked < vocabulary)
            power = exponent(value, asked, maximum, scored, cut, row, live)
            power = tl.where(known, power, float("nan"))
            tl.store(out + 4 * num_rows, tl.exp(power) / partition)
            tl.store(out + 5 * num_rows, power - tl.log(partition))
