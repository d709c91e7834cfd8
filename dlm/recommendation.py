"""Decoding options that the authors of a checkpoint recommend."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm.models.catalog import BUILT_IN_NAME
from dlm.models.family import last_parts
from dlm.options import known
from dlm.published.recommended import RECOMMENDED, Recommended

if TYPE_CHECKING:
    from dlm.models.model import Model


def recommended(model: "str | os.PathLike[str] | Model") -> dict[str, Any]:
    """The authors' decoding options for a checkpoint, as options of `generate`.

    They come from model cards and quick starts; `dlm models NAME` says which. For example:

        dlm.generate(model, prompts, **dlm.recommended(model) | {"gen_length": 64})

    Args:
        model: a Hugging Face id, a folder of that name, or a model that was loaded from either.

    Raises:
        ValueError: no settings of it are known (the message gives the closest match and the list),
            or it is none of these.
    """
    return options_of(recommendation(model))


def options_of(found: Recommended) -> dict[str, Any]:
    """A copy of the options, free to change."""
    return copy.deepcopy(dict(found.options))


def recommendation(model: "str | os.PathLike[str] | Model") -> Recommended:
    """The settings and their source.

    Raises:
        ValueError: none are known.
    """
    name = name_of(model)
    found = lookup(name)
    if found is None and is_built_in(name):
        raise ValueError("no settings are published for the built-in model: use the defaults")
    if found is None:
        names = [each for one in RECOMMENDED for each in one.checkpoints]
        known("checkpoint with recommended settings", name, names)
    assert found is not None  # else `known` raised
    return found


def name_of(model: "str | os.PathLike[str] | Model") -> str:
    """The name or folder that a model was loaded from.

    Raises:
        ValueError: this is not a model.
    """
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    from dlm.models.model import Model  # imported late, as it needs torch

    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a Hugging Face id, a folder or what dlm.load makes, got {model!r}"
        )
    return str(model.network.config.name_or_path)


def is_built_in(name: str) -> bool:
    """Whether this is the built-in model's name or folder."""
    return name == BUILT_IN_NAME or Path(name).parts[-3:] == ("dlm", "assets", "tiny")


def lookup(name: str) -> Recommended | None:
    """The settings of a checkpoint, also for copies of it and folders; None if none are known."""
    parts = {part.lower() for part in last_parts(name)}
    for each in RECOMMENDED:
        if parts & {checkpoint.rpartition("/")[2].lower() for checkpoint in each.checkpoints}:
            return each
    return None
