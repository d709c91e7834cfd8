"""Completions in front of a suffix whose blanks become more and fewer, as the network asks."""

from typing import Final

from dlm.growth import Growth
from dlm.models.spec import ModelSpec
from dlm.options import integer
from dlm.serving.fields import Body

FIRST: Final = 4
"""Blanks to begin with, as DreamOn's authors do."""


def read_blanks(
    body: Body, spec: ModelSpec, gen_length: int, *, fills: bool, lists: bool
) -> tuple[int, Growth | None]:
    """Blanks to begin with, and how far they may grow; None where they keep their number.

    Args:
        body: its field `blanks` says how many, at most `gen_length`.
        spec: of the model.
        gen_length: tokens that the blanks may come to, or have from the beginning.
        fills: whether a suffix stands behind them.
        lists: whether log-probabilities are asked for.

    Raises:
        ValueError: the field is no such number, stands where no blank may grow, or beside
            log-probabilities, which are told by position.
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
