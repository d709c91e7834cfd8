"""Unmasking policies: which masked positions to commit after a forward."""

from dataclasses import fields
from typing import Any

from dlm.decoders.low_confidence import LowConfidence
from dlm.decoders.orders import Entropy, LeftToRight, Margin, Random
from dlm.decoders.threshold import Threshold
from dlm.options import known
from dlm.types import AnyDecoder

__all__ = [
    "DECODERS",
    "Entropy",
    "LeftToRight",
    "LowConfidence",
    "Margin",
    "Random",
    "Threshold",
    "make",
]

DECODERS: dict[str, type[AnyDecoder]] = {
    "low_confidence": LowConfidence,
    "random": Random,
    "left_to_right": LeftToRight,
    "entropy": Entropy,
    "margin": Margin,
    "threshold": Threshold,
}


def make(name: str, **options: Any) -> AnyDecoder:
    """The decoder `name` with hyperparameters `options`.

    Raises:
        ValueError: unknown name or option (the message has the close match and the list), or a
            value out of its rule.
    """
    decoder = DECODERS[known("decoder", name, DECODERS)]
    for option in options:
        known(f"option of {name}", option, (f.name for f in fields(decoder)))  # type: ignore[arg-type]
    return decoder(**options)
