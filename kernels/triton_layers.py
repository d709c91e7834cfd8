"""Products of few tokens, norms and rotary positions as Triton kernels.

A step that decodes a window multiplies some 32 tokens with every weight, so its speed is that of
reading weights. A program computes 64 rows of a weight matrix and all tokens, with the tokens as
the narrow side of the product. If a matrix has too few rows to keep all processors reading, its
columns are split, and the next operation adds up the parts. Neither the split nor the order of
any sum depends on the number of tokens.

Everything is rounded where the torch operations would round it. Only the order of sums differs,
and the last bit of an exponential or a root.

Shapes: M tokens, K columns, N rows of the weights, P parts, D model width, H query heads, G key
heads, E head width, R rotated columns of it.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def product_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, first, second, third, first_bias, second_bias, third_bias, first_rows, second_rows, out,
    tokens, rows,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The product x W^T + b of up to three matrices: some of their rows, and a part of K.

    Args:
        x: Pointer to half precision [M, K].
        first: Pointer to the first rows of W, [N1, K]; a program is within one matrix.
        second: Pointer to the rows after those, [N2, K].
        third: Pointer to the remaining rows.
        first_bias: Pointer to [N1], or None if there are no biases.
        second_bias: Pointer to [N2].
        third_bias: Pointer to the remaining ones.
        first_rows: N1, a multiple of ROWS.
        second_rows: N2, a multiple of ROWS.
        out: Pointer to [P, M, N], written; float32 if P > 1.
        tokens: M.
        rows: N.
        COLUMNS: K, a multiple of BLOCK P.
        TOKENS: M rounded up to a power of 2, at least 16.
        ROWS: Rows of a program.
        BLOCK: Columns at a time.
        PARTS: P.
        STAGES: Blocks in flight.
    """
    row = tl.program_id(0) * ROWS
    part = tl.program_id(1)
    if row < first_rows:
        weight, bias, inner = first, first_bias, row
    elif row < first_rows + second_rows:
        weight, bias, inner = second, second_bias, row - first_rows
    else:
        weight, bias, inner = third, third_bias, row - first_rows - second_rows
    line, token = tl.arange(0, ROWS), tl.arange(0, TOKENS)
    column = part * (COLUMNS // PARTS) + tl.arange(0, BLOCK)
    live = token[None, :] < tokens
    places = weight + (inner + line).to(tl.int64)[:, None] * COLUMNS + column[None, :]
    given = x + token[None, :] * COLUMNS + column[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in tl.range(0, COLUMNS // PARTS, BLOCK, num_stages=STAGES):
        ours = tl.load(places + start)
        total = tl.dot(ours, tl.load(given + start, mask=live, other=0.0), total)
    if first_bias is not None:  # noqa: SIM102 (only this is known when it is compiled)
        if part == 0:
            total += tl.load(bias + inner + line).to(tl.float32)[:, None]
    place = (part * tokens + token).to(tl.int64)[None, :] * rows + (row + line)[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def gated_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, gate, up, out, tokens, rows,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """SwiGLU, silu(x W^T) (x V^T); a program computes some rows of both matrices.

    Args:
        x: Pointer to half precision [M, K].
        gate: Pointer to W, [N, K].
        up: Pointer to V, [N, K].
        out: Pointer to [M, N], written.
        tokens: M.
        rows: N, a multiple of ROWS.
        COLUMNS: K, a multiple of BLOCK.
        TOKENS: M rounded up to a power of 2, at least 16.
        ROWS: Rows of a program.
        BLOCK: Columns at a time.
        STAGES: Blocks in flight.
    """
    row = tl.program_id(0) * ROWS
    line, token, column = tl.arange(0, ROWS), tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    live = token[None, :] < tokens
    place = (row + line).to(tl.int64)[:, None] * COLUMNS + column[None, :]
    given = x + token[None, :] * COLUMNS + column[:, None]
    opened = tl.zeros((ROWS, TOKENS), tl.float32)
    passed = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in tl.range(0, COLUMNS, BLOCK, num_stages=STAGES):
        block = tl.load(given + start, mask=live, other=0.0)
        opened = tl.dot(tl.load(gate + place + start), block, opened)
        passed = tl.dot(tl.load(up + place + start), block, passed)
    kind = out.dtype.element_ty
    opened = opened.to(kind).to(tl.float32)
    opened = (opened / (1 + tl.exp(-opened))).to(kind).to(tl.float32)
    made = (opened * passed.to(kind).to(tl.float32)).to(kind)
    tl.store(out + token.to(tl.int64)[None, :] * rows + (row + line)[:, None], made, mask=live)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def add_norm_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    x, parts, weight, total, normed, epsilon, tokens,
    WIDTH: tl.constexpr, ROOM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Residual and norm: h = x + sum of the parts, and h / sqrt(mean h^2 + eps) w, of one token.

    Args:
        x: Pointer to half precision [M, D].
        parts: Pointer to [P, M, D].
        weight: Pointer to w, [D].
        total: Pointer to [M, D], written: h.
        normed: Pointer to [M, D], written.
        epsilon: float32, eps.
        tokens: M.
        WIDTH: D.
        ROOM: D rounded up to a power of 2.
        PARTS: P.
    """
    column = tl.arange(0, ROOM)
    live = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    kind = x.dtype.element_ty
    more = tl.load(parts + place, mask=live, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        here = parts + part * tokens.to(tl.int64) * WIDTH + place
        more += tl.load(here, mask=live, other=0.0).to(tl.float32)
    more = more.to(kind).to(tl.float32)
    whole = (tl.load(x + place, mask=live, other=0.0).to(tl.float32) + more).to(kind)
    tl.store(total + place, whole, mask=live)
    whole = whole.to(tl.float32)
    shrink = tl.rsqrt(tl.sum(whole * whole, 0) / WIDTH + epsilon)
    scale = tl.load(weight + column, mask=live, other=0.0).to(tl.float32)
    tl.store(normed + place, (whole * shrink * scale).to(kind), mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def add_up(parts, place, step, live, PARTS: tl.constexpr, kind):  # type: ignore[no-untyped-def]
    """Sum over the parts at the given places, rounded to a dtype; float32."""
    total = tl.load(parts + place, mask=live, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * step + place, mask=live, other=0.0).to(tl.float32)
    return total.to(kind).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "angles"])  # type: ignore[untyped-decorator]
def rotate_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (a kernel takes pointers)
    parts, cosine, sine, query_norm, key_norm, epsilon, places, query, keys, values, tokens, angles,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROTATED: tl.constexpr,
    PARTS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Add up projections, normalise and rotate queries and keys, and store them for attention.

    A program computes some heads of one token.

    Args:
        parts: Pointer to [P, M, (H + 2 G) E], heads of queries, keys and values.
        cosine: Pointer to [A, R]: token n uses row n mod A.
        sine: Pointer to [A, R].
        query_norm: Pointer to the weight of queries' RMSNorm, [E], or None for no norms.
        key_norm: Pointer to that of keys.
        epsilon: float32, of the norms.
        places: Pointer to int64 [M], token index in `keys` and `values` where a token is stored;
            None for its own index.
        query: Pointer to half precision [M, H, E], written.
        keys: Pointer to [..., G, E], written.
        values: Pointer to [..., G, E], written.
        tokens: M.
        angles: A.
        HEADS: H.
        GROUPS: G.
        WIDTH: E.
        ROTATED: R.
        PARTS: P.
        SOME: Heads of a program.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * SOME + tl.arange(0, SOME)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    kind = query.dtype.element_ty
    heads: tl.constexpr = HEADS + 2 * GROUPS
    turns = column < ROTATED
    half: tl.constexpr = ROTATED // 2
    other = tl.where(turns, (column + half) % ROTATED, column)
    base, step = (token * heads + head) * WIDTH, tokens.to(tl.int64) * heads * WIDTH
    live = (head < heads) & (column < WIDTH)
    own = add_up(parts, base + column, step, live, PARTS, kind)
    # Read again instead of exchanged between threads: the values are in the L1 cache.
    facing = add_up(parts, base + other, step, live, PARTS, kind)

    turned, partner = own, facing
    if query_norm is not None:
        shrink = tl.rsqrt(tl.sum(own * own, 1) / WIDTH + epsilon)[:, None]
        asks = head < HEADS
        scale = tl.where(asks, tl.load(query_norm + column), tl.load(key_norm + column))
        turned = (own * shrink * scale.to(tl.float32)).to(kind).to(tl.float32)
        scale = tl.where(asks, tl.load(query_norm + other), tl.load(key_norm + other))
        partner = (facing * shrink * scale.to(tl.float32)).to(kind).to(tl.float32)
    angle = (token % angles) * ROTATED + column
    exact = cosine.dtype.element_ty
    along = turned * tl.load(cosine + angle, mask=turns, other=0.0).to(tl.float32)
    partner = tl.where(column < half, -partner, partner)
    across = partner * tl.load(sine + angle, mask=turns, other=0.0).to(tl.float32)
    along, across = along.to(exact).to(tl.float32), across.to(exact).to(tl.float32)
    turned = tl.where(turns, (along + across).to(exact).to(tl.float32), turned).to(kind)

    tl.store(query + (token * HEADS + head) * WIDTH + column, turned, mask=live & (head < HEADS))
    place = token
    if places is not None:
        place = tl.load(places + token)
    into = (place * GROUPS + head - HEADS) * WIDTH + column
    tl.store(keys + into, turned, mask=(head >= HEADS) & (head < HEADS + GROUPS) & live)
    into -= GROUPS * WIDTH
    tl.store(values + into, own.to(kind), mask=(head >= HEADS + GROUPS) & live)
