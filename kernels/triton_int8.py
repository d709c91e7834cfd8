"""Products of 8-bit integers for few tokens and for many, as Triton kernels.

A step that decodes a window is bound by reading weights, and weights of one byte are read in half
the time. One kernel quantises tokens; others multiply them on tensor cores, which accumulate in 32
bits. With 127 steps for an activation everything is rounded as in `int8.product_reference`,
except that each part of a split product is rounded to float32 before the parts are added. No
multiply-add is fused (`enable_fp_fusion`), so that a product is rounded before something is added
to it. The exponential of a gate is the device's.

Shapes: M tokens, K columns, N rows of the weights, P parts.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def round_kernel(  # type: ignore[no-untyped-def]
    x, rounded, scale, least, COLUMNS: tl.constexpr, ROOM: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Integers of one token, u = round(x / s) with s = max |x| / A.

    Args:
        x: Pointer to floats [M, K].
        rounded: Pointer to int8 [M, K], written: u.
        scale: Pointer to float32 [M], written: s; NaN if the token has one.
        least: float32, lower bound of max |x|.
        COLUMNS: K.
        ROOM: K rounded up to a power of 2.
        STEPS: A.
    """
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, ROOM)
    live = column < COLUMNS
    place = token * COLUMNS + column
    value = tl.load(x + place, mask=live, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 0), least)
    # A maximum ignores NaN. The scale records that a token is not finite; its integers are 0.
    spoilt = tl.max((value != value).to(tl.int32), 0) > 0
    largest = tl.where(spoilt, float("nan"), largest)
    finite = largest < float("inf")
    steps = tl.full((), STEPS, tl.float32)
    far: tl.constexpr = 12582912.0  # 1.5 2^23; adding it rounds a float32 to an integer
    # torch also computes the inverse first when it divides a number by a tensor.
    inverse = tl.div_rn(tl.full((), 1.0, tl.float32), largest)
    factor = tl.where(finite, inverse * steps, 0.0)
    whole = (tl.where(finite, value, 0.0) * factor + far) - far
    tl.store(rounded + place, whole.to(tl.int8), mask=live)
    tl.store(scale + token, tl.div_rn(largest, steps))


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def int8_product_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, own, first, second, third, first_scale, second_scale, third_scale,
    first_bias, second_bias, third_bias, first_rows, second_rows, out, tokens, rows,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The product s t u q^T + b of some tokens and some rows of up to three matrices, or a part.

    A program computes one of the parts of K, or all of them one after the other.

    Args:
        x: Pointer to int8 [M, K], u.
        own: Pointer to float32 [M], s.
        first: Pointer to the first rows of q, int8 [N1, K]; a program is within one matrix.
        second: Pointer to the rows after those, [N2, K].
        third: Pointer to the remaining rows.
        first_scale: Pointer to the scales t of `first`, float32 [N1].
        second_scale: Pointer to those of `second`, [N2].
        third_scale: Pointer to the remaining ones.
        first_bias: Pointer to b, [N1], or None if there are no biases.
        second_bias: Pointer to [N2].
        third_bias: Pointer to the remaining ones.
        first_rows: N1, a multiple of ROWS.
        second_rows: N2, a multiple of ROWS.
        out: Pointer to [P / EACH, M, N], written; float32 if there are several.
        tokens: M.
        rows: N.
        COLUMNS: K, a multiple of BLOCK P.
        TOKENS: Tokens of a program, a power of 2, at least 16.
        ROWS: Rows of a program.
        BLOCK: Columns at a time.
        PARTS: P.
        EACH: Parts of a program, 1 or P.
        STAGES: Blocks in flight.
    """
    row = tl.program_id(1) * ROWS
    first_part = tl.program_id(2) * EACH
    if row < first_rows:
        weight, scale, bias, inner = first, first_scale, first_bias, row
    elif row < first_rows + second_rows:
        weight, scale, bias, inner = second, second_scale, second_bias, row - first_rows
    else:
        inner = row - first_rows - second_rows
        weight, scale, bias = third, third_scale, third_bias
    line, token = tl.arange(0, ROWS), tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = first_part * (COLUMNS // PARTS) + tl.arange(0, BLOCK)
    live = token[None, :] < tokens
    places = weight + (inner + line).to(tl.int64)[:, None] * COLUMNS + column[None, :]
    given = x + token.to(tl.int64)[None, :] * COLUMNS + column[:, None]
    rates = tl.load(scale + inner + line)[:, None]
    owns = tl.load(own + token, mask=token < tokens, other=0.0)[None, :]
    summed = tl.zeros((ROWS, TOKENS), tl.float32)
    for part in tl.static_range(EACH):
        total = tl.zeros((ROWS, TOKENS), tl.int32)
        for step in tl.range(0, COLUMNS // PARTS, BLOCK, num_stages=STAGES):
            start = step + part * (COLUMNS // PARTS)
            theirs = tl.load(given + start, mask=live, other=0)
            total = tl.dot(tl.load(places + start), theirs, total, out_dtype=tl.int32)
        made = total.to(tl.float32) * rates * owns
        if part == 0 and first_bias is not None:  # noqa: SIM102 (only this is known early)
            if first_part == 0:
                made += tl.load(bias + inner + line).to(tl.float32)[:, None]
        summed += made
    token = (tl.program_id(2) * tokens + token).to(tl.int64)
    place = token[None, :] * rows + (row + line)[:, None]
    tl.store(out + place, summed.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def int8_gated_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, own, gate, up, gate_scale, up_scale, out, tokens, rows,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """SwiGLU; a program computes some tokens and some rows of both matrices.

    Args:
        x: Pointer to int8 [M, K], u.
        own: Pointer to float32 [M], s.
        gate: Pointer to int8 [N, K].
        up: Pointer to int8 [N, K].
        gate_scale: Pointer to float32 [N].
        up_scale: Pointer to float32 [N].
        out: Pointer to half precision [M, N], written.
        tokens: M.
        rows: N, a multiple of ROWS.
        COLUMNS: K, a multiple of BLOCK.
        TOKENS: Tokens of a program, a power of 2, at least 16.
        ROWS: Rows of a program.
        BLOCK: Columns at a time.
        STAGES: Blocks in flight.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token, column = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    live = token[None, :] < tokens
    place = row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    given = x + token.to(tl.int64)[None, :] * COLUMNS + column[:, None]
    opened = tl.zeros((ROWS, TOKENS), tl.int32)
    passed = tl.zeros((ROWS, TOKENS), tl.int32)
    for start in tl.range(0, COLUMNS, BLOCK, num_stages=STAGES):
        block = tl.load(given + start, mask=live, other=0)
        opened = tl.dot(tl.load(gate + place + start), block, opened, out_dtype=tl.int32)
        passed = tl.dot(tl.load(up + place + start), block, passed, out_dtype=tl.int32)
    kind = out.dtype.element_ty
    own = tl.load(own + token, mask=token < tokens, other=0.0)[None, :]
    gates = opened.to(tl.float32) * tl.load(gate_scale + row)[:, None] * own
    ups = passed.to(tl.float32) * tl.load(up_scale + row)[:, None] * own
    gates = gates.to(kind).to(tl.float32)
    gates = (gates / (1 + tl.exp(-gates))).to(kind).to(tl.float32)
    made = (gates * ups.to(kind).to(tl.float32)).to(kind)
    tl.store(out + token.to(tl.int64)[None, :] * rows + row[:, None], made, mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def int8_grouped_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, own, order, weight, scale, expert, begin, end, out,
    EACH: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The products s t u q^T of some choices of one expert with some rows of its matrix.

    A choice is one expert of one token; choices are sorted by expert. A program with an empty tile
    exits. With EACH the kernel gathers the tokens and writes the products in sorted order; without,
    it reads sorted inputs and writes each product to its original place.

    Args:
        x: Pointer to int8 [M, K], u; or sorted [R, K].
        own: Pointer to float32 [M] or [R], s.
        order: Pointer to int64 [R], original place of each choice, of token order[r] // EACH.
        weight: Pointer to int8 [E, N, K], q.
        scale: Pointer to float32 [E, N], t.
        expert: Pointer to int64 [T], expert of each tile of choices.
        begin: Pointer to int64 [T], first choice of the tile.
        end: Pointer to int64 [T], one past the last choice of its expert.
        out: Pointer to float32 [R, N], written.
        EACH: Choices of a token; 0 if the inputs are sorted.
        COLUMNS: K, a multiple of BLOCK.
        N: A multiple of ROWS.
        TOKENS: Choices of a tile, a power of 2, at least 16.
        ROWS: Rows of a program.
        BLOCK: Columns at a time.
        STAGES: Blocks in flight.
    """
    tile = tl.program_id(0)
    first, last = tl.load(begin + tile), tl.load(end + tile)
    if first >= last:
        return
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    choice, column = first + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    live = choice < last
    token, place = choice, choice
    if EACH > 0:
        token = tl.load(order + choice, mask=live, other=0) // EACH
    else:
        place = tl.load(order + choice, mask=live, other=0)
    which = tl.load(expert + tile)
    places = weight + (which * N + row)[:, None] * COLUMNS + column[None, :]
    given = x + token[None, :] * COLUMNS + column[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.int32)
    for start in tl.range(0, COLUMNS, BLOCK, num_stages=STAGES):
        block = tl.load(given + start, mask=live[None, :], other=0)
        total = tl.dot(tl.load(places + start), block, total, out_dtype=tl.int32)
    made = total.to(tl.float32) * tl.load(scale + which * N + row)[:, None]
    made *= tl.load(own + token, mask=live, other=0.0)[None, :]
    tl.store(out + place[None, :] * N + row[:, None], made, mask=live[None, :])
