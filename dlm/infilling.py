"""Filling blanks anywhere in a text: `infill` over the one denoising loop."""

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
from dlm.runtime import Step, listener, no_listener
from dlm.settings import INSTEAD, NAMES, Settings

GROWTH: Final = ("max_gen_length", "expand_budget", "broadcast_deletion")
"""Options of `infill` that `generate` does not have."""


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
    """Fill blanks anywhere in a text, with the text on both sides visible.

    Block-attention models (`model.spec.block_size`) see no more of what follows a blank than the
    rest of its block.

    Args:
        model: the model, from `dlm.load`.
        text: a text in which `[MASK]` stands for one missing token and `[MASK:8]` for eight, or
            token ids that contain the mask id; or a list of one of those.
        batch_size: rows decoded at once, as in `generate`.
        max_gen_length: most tokens that all blanks of a text may hold together. None, the default,
            keeps each blank as long as it is written. For models that grow and delete blanks by
            tokens (Wu et al. 2026, DreamOn, arXiv:2602.01326): a blank that samples `<|expand|>`
            becomes two, one that samples the end of text is removed. When a row changes its length
            it is laid out again: blocks begin at the first blank that is left, and the decoder's
            state is lost. The authors' rule: `decoder="entropy", block_length=None`.
        expand_budget: how often a blank of a text may become two; 2 `max_gen_length` by default.
        broadcast_deletion: whether the masks right after a removed blank are removed too, which
            takes fewer forward passes; off by default.
        **options: as in `generate`, without `gen_length`, `stop` and `constraint`. `stop_at_eos` is
            off by default, because the text after a blank is given.

    Returns:
        The whole rows with their blanks filled; texts without special tokens. If blanks may grow,
        `decoded` counts the tokens in them at the end.

    Raises:
        ValueError: as in `generate`; or a text has no blank; or, with `max_gen_length`, the network
            has no expand token, there are more blanks than that, the decoder takes tokens back or
            looks ahead, or `steps`, `stop_at_eos`, `cfg_scale`, `begin_suppress_tokens` or an
            option that records by position is set.
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
    """Fill the blanks of many texts, yielding each result as soon as it is done.

    Args:
        model: the model, from `dlm.load`.
        text: as in `infill`.
        batch_size: rows decoded at once; here 16 by default.
        max_gen_length: as in `infill`.
        expand_budget: as in `infill`.
        broadcast_deletion: as in `infill`.
        tell: a callback for each forward pass, as in `generate_each`.
        **options: as in `infill`.

    Returns:
        An iterator over pairs: the index of a text and the generation of its row alone.

    Raises:
        ValueError: as in `infill`, raised at the call.
    """
    growth = growth_of(max_gen_length, expand_budget, broadcast_deletion)
    return filled(model, text, batch_size, growth, options, listener(tell))


def filled(
    model: Model,
    text: Prompts,
    batch_size: int | None,
    growth: Growth | None,
    options: Mapping[str, Any],
    tell: Callable[[Step], object] = no_listener,
) -> Iterator[tuple[int, Generation]]:
    """The result of each text as it is done; `growth` says how far blanks may grow, if at all.

    Raises:
        ValueError: as in `infill`, raised at the call.
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
    """How far blanks may grow, from the options; None if they keep their length.

    Raises:
        ValueError: an option is out of range, or set without `max_gen_length`.
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
    """Decode rows whose blanks may grow, yielding each as `infill` returns it."""
    for part in growing.run(batch_size, tell):
        text = None if model.tokenizer is None else [whole_text(model, part.tokens)]
        yield (
            part.name,
            Generation([part.tokens], text, [part.decoded], [part.forwards], [part.queries]),
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Reject options of `infill` that are invalid for every model.

    Raises:
        ValueError: as in `infill`.
    """
    rest = dict(options)
    growth = growth_of(**{name: rest.pop(name) for name in GROWTH if name in rest})
    settings = infill_settings(rest)
    if growth is not None:
        growth.check_settings(settings)


def infill_settings(options: Mapping[str, Any]) -> Settings:
    """The settings for `infill`.

    Raises:
        ValueError: an option is invalid, or only for `generate`.
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
