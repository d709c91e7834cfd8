"""The least work of a forward pass and of a read of the logits, counted from shapes.

Shapes: B rows, L tokens, N positions projected, D width, V vocabulary.
"""

from dlm.bench.shapes import Shape


def layer_weights(shape: Shape) -> int:
    """Weights in the matrices of one layer: q, k, v, o and the three of SwiGLU."""
    width, head = shape.width, shape.width // shape.heads
    narrow = shape.key_value_heads * head
    return 2 * width * width + 2 * width * narrow + 3 * width * shape.mlp_width


def parameters(shape: Shape) -> int:
    """All parameters: matrices, norms, embedding and projection."""
    tables = (1 if shape.tied else 2) * shape.vocabulary * shape.width
    norms = (2 * shape.layers + 1) * shape.width
    return shape.layers * layer_weights(shape) + norms + tables


def read_weights(shape: Shape) -> int:
    """Weights that a forward pass reads completely: all but an embedding, which is only indexed."""
    return shape.layers * layer_weights(shape) + shape.vocabulary * shape.width


def forward_flops(
    shape: Shape, batch: int, length: int, projected: int, *, tokens: int | None = None
) -> int:
    """Flops of a forward pass: two per weight and token, and the two products of attention.

    Args:
        shape: the shape of the network.
        batch: B.
        length: L, real tokens or padding.
        projected: positions of all rows whose logits are computed.
        tokens: number of tokens that the layers compute, if not all B L; packed rows have no
            padding.
    """
    tokens = batch * length if tokens is None else tokens
    matrices = 2 * tokens * shape.layers * layer_weights(shape)
    attention = 4 * batch * length * length * shape.width * shape.layers
    return matrices + attention + 2 * projected * shape.width * shape.vocabulary


def logits_bytes(rows: int, vocabulary: int, item_size: int) -> int:
    """Bytes of one read of logits [N, V]."""
    return rows * vocabulary * item_size
