"""Completions before a suffix, whose number of blanks grows and shrinks as the network asks."""

from typing import Final

from dlm.growth import Growth
from dlm.models.spec import ModelSpec
from dlm.options import integer
from dlm.serving.fields import Body

FIRST: Final = 4
"""Initial number of blanks, as used by DreamOn's authors."""


def read_blanks(
    body: Body, spec: ModelSpec, gen_length: int, *, fills: bool, lists: bool
) -> tuple[int, Growth | None]:
    """The initial number of blanks, and how far they may grow; None if their number is fixed.

    Args:
        body: its field `blanks` gives the initial number, at most `gen_length`.
        spec: facts of the model.
        gen_length: tokens that the blanks may grow to, or have from the beginning.
        fills: whether a suffix follows them.
        lists: whether log-probabilities are asked for.

    Raises:
        ValueError: the field is no such number or is given where no blank may grow, or
            log-probabilities, which belong to positions, are asked for where blanks may grow.
    """
    asked = body.get("blanks")
    if spec.expand_id is None or not fills:
        if asked is not None:
            raise ValueError(
                f"blanks is for a suffix and a model that asks for blanks, got {asked!r}"
            )
        return gen_length, None
    if lists:
        raise ValueError(
            f"logprobs is not for blanks that grow: positions move, got {body['logprobs']!r}"
        )
    begun = min(FIRST, gen_length) if asked is None else asked
    return integer("blanks", begun, least=1, most=gen_length), Growth.of(gen_length, None)
