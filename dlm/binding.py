"""Binds a decoder to one model and one canvas."""

from dlm.background import background
from dlm.canvas import Canvas
from dlm.models.model import Model
from dlm.types import AnyDecoder, Facts


def bind(
    decoder: AnyDecoder,
    model: Model,
    canvas: Canvas,
    block_length: int | None,
    reach: int | None = None,
) -> AnyDecoder:
    """Bind a decoder to one model and one canvas, if it has a `bind` method.

    Args:
        decoder: the decoder.
        model: the model whose facts the decoder is told.
        canvas: the rows to be decoded.
        block_length: positions of a block; None for one block.
        reach: most positions from the first block to the last blank that rows may grow to; None if
            they keep their length.

    Raises:
        ValueError: the decoder was made for another model.
    """
    ready = getattr(decoder, "bind", None)
    if ready is None:
        return decoder
    blocks, length = extent(canvas, block_length, reach)
    facts = Facts(
        blocks=blocks,
        block_length=length,
        vocab_size=model.spec.vocab_size,
        mask_id=model.spec.mask_id,
        device=model.device,
        background=lambda: background(model),
    )
    bound: AnyDecoder = ready(facts)
    return bound


def extent(canvas: Canvas, block_length: int | None, reach: int | None) -> tuple[int, int]:
    """The number of blocks of a row, and the positions of a block, that a decoder is told."""
    span = canvas.span if reach is None else reach
    length = min(block_length or span, span)
    return (canvas.blanks.shape[1] if reach is None else -(-reach // length)), length
