"""The decoder from an option: a name with hyperparameters, or an instance."""

from collections.abc import Mapping
from typing import Any

from dlm.decoders import make
from dlm.types import AnyDecoder


def policy_of(decoder: Any, options: object) -> AnyDecoder:
    """The decoder, constructed from its name if needed.

    Raises:
        ValueError: it is neither a name nor an instance, or its options are invalid.
    """
    if isinstance(decoder, str):
        given = {} if options is None else options
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"decoder_options must map names to values, got {options!r}")
        return make(decoder, **given)
    if isinstance(decoder, type) or not callable(getattr(decoder, "step", None)):
        raise ValueError(f"decoder must be a name or a decoder instance, got {decoder!r}")
    if options:
        raise ValueError(
            "decoder_options go with a decoder's name; this decoder is an instance, "
            f"got {options!r}"
        )
    made: AnyDecoder = decoder
    return made
