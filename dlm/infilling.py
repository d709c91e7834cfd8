"""Blanks anywhere in a text: `infill` over the one denoising loop."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from dlm.generation import outcomes, together
from dlm.growth import Growing, Growth
from dlm.inferring import inferring
from dlm.job import make_job
from dlm.models.model import Model
from dlm.options import boolean, integer, names_checked
from dlm.outputs import Generation
from dlm.prompts import Prompts, check_model, encode_texts, whole_text
from dlm.runtime import Step, heard, unheard
from dlm.settings import INSTEAD, NAMES, Settings

GROWTH: Final = ("max_gen_length", "expand_budget", "broadcast_deletion")
"""Options of `infill` alone."""


@partial(names_checked, options=NAMES, instead=INSTEAD)
def infill(
    model: Model,
    text: Prompts,
    *,
    batch_size: int | None = None,
    max_gen_length: int | None = None,
    expand_budget: int | None = None,
    broadcast_deletion: bool = False,
    **options: Any,
) -> Generation:
    """Fill blanks anywhere in a text, with what stands on both sides in view.

    Networks that decode block by block (`model.spec.block_size`) see of what stands behind a blank
    no more than the rest of its block.

    Args:
        model: what `dlm.load` gave.
        text: text where `[MASK]` stands for one missing token and `[MASK:8]` for eight, or token
            ids holding the mask id; or a list of one of those.
        batch_size: as in `generate`.
        max_gen_length: tokens that the blanks of a text may come to, all together. For networks
            that ask for blanks and give them up by tokens (Wu et al. 2026, DreamOn,
            arXiv:2602.01326): a blank that takes `<|expand|>` becomes two, one that takes the end
            of text goes. None keeps each blank as long as it is written. Rows that change their
            length are laid out anew: blocks begin at the first blank that is left, and what a
            decoder remembers is forgotten. The authors' rule: `decoder="entropy",
            block_length=None`.
        expand_budget: times that a blank of a text may become two, 2 `max_gen_length` by default.
        broadcast_deletion: whether the masks right behind a blank that goes do so, too, which takes
            fewer forwards.
        **options: as in `generate`, without `gen_length`, `stop` and `constraint`; `stop_at_eos` is
            off by default, as what follows a blank is given.

    Returns:
        The whole rows, blanks filled; texts without special tokens. Where blanks may grow,
        `decoded` counts the tokens that are in them at the end.

    Raises:
        ValueError: as in `generate`; a text without a blank; with `max_gen_length` a network that
            does not ask for blanks, more blanks than that, a decoder that takes tokens back or
            looks ahead, and `steps`, `stop_at_eos`, `cfg_scale`, `begin_suppress_tokens` and what
            is recorded by position.
    """
    growth = growth_of(max_gen_length, expand_budget, broadcast_deletion)
    return together(filled(model, text, batch_size, growth, options))


@partial(names_checked, options=NAMES, instead=INSTEAD)
def infill_each(
    model: Model,
    text: Prompts,
    *,
    batch_size: int = 16,
    max_gen_length: int | None = None,
    expand_budget: int | None = None,
    broadcast_deletion: bool = False,
    tell: Callable[[Step], object] | None = None,
    **options: Any,
) -> Iterator[tuple[int, Generation]]:
    """Fill the blanks of many texts, yielding each as soon as it is done.

    Args:
        model: what `dlm.load` gave.
        text: as in `infill`.
        batch_size: as in `generate`.
        max_gen_length: as in `infill`.
        expand_budget: as in `infill`.
        broadcast_deletion: as in `infill`.
        tell: as in `generate_each`.
        **options: as in `infill`.

    Returns:
        The number of a text, and what came of it alone.

    Raises:
        ValueError: as in `infill`, when called.
    """
    growth = growth_of(max_gen_length, expand_budget, broadcast_deletion)
    return filled(model, text, batch_size, growth, options, heard(tell))


def filled(
    model: Model,
    text: Prompts,
    batch_size: int | None,
    growth: Growth | None,
    options: Mapping[str, Any],
    tell: Callable[[Step], object] = unheard,
) -> Iterator[tuple[int, Generation]]:
    """What comes of each text, as it is done; `growth` tells how far blanks may grow.

    Raises:
        ValueError: as in `infill`, when called.
    """
    check_model(model)
    settings = infill_settings(options)
    rows = encode_texts(model, text)
    if growth is None:
        spans = [(0, len(row)) for row in rows]
        job = make_job(model, rows, spans, settings, batch_size=batch_size)
        return outcomes(job, whole_text, tell)
    if batch_size is not None:
        integer("batch_size", batch_size, least=1)
    growing = Growing(model, rows, settings, growth)
    return grown(model, growing, len(rows) if batch_size is None else batch_size, tell)


def growth_of(
    max_gen_length: int | None = None,
    expand_budget: int | None = None,
    broadcast_deletion: bool = False,
) -> Growth | None:
    """How far blanks may grow, as the options say; None where they keep their length.

    Raises:
        ValueError: an option is out of range, or stands without the first.
    """
    if max_gen_length is not None:
        return Growth.of(max_gen_length, expand_budget, broadcast_deletion)
    deletes = boolean("broadcast_deletion", broadcast_deletion)
    others = {"expand_budget": expand_budget, "broadcast_deletion": deletes or None}
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} goes with max_gen_length, got {value!r} without it")
    return None


@inferring
def grown(
    model: Model, growing: Growing, batch_size: int, tell: Callable[[Step], object]
) -> Iterator[tuple[int, Generation]]:
    """Run rows whose blanks may grow, yielding each as `infill` does."""
    for part in growing.run(batch_size, tell):
        text = None if model.tokenizer is None else [whole_text(model, part.tokens)]
        yield (
            part.name,
            Generation([part.tokens], text, [part.decoded], [part.forwards], [part.queries]),
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `infill` that are wrong with every model.

    Raises:
        ValueError: as in `infill`.
    """
    rest = dict(options)
    growth = growth_of(**{name: rest.pop(name) for name in GROWTH if name in rest})
    settings = infill_settings(rest)
    if growth is not None:
        growth.check_settings(settings)


def infill_settings(options: Mapping[str, Any]) -> Settings:
    """Those of `infill`.

    Raises:
        ValueError: an option breaks its rule, or is for `generate`.
    """
    if "gen_length" in options:
        raise ValueError("gen_length is for generate: infill decodes the blanks of the text")
    settings = Settings.of({"stop_at_eos": False, **options})
    if settings.stops:
        raise ValueError(
            f"stop is for generate: what follows a blank is given, got {settings.stop!r}"
        )
    if settings.held:
        raise ValueError(
            "constraint is for generate: what stands around a blank is no part of its text, "
            f"got {settings.constraint!r}"
        )
    return settings
