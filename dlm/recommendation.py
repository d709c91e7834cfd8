"""What the authors of a checkpoint decode it with, as options of `generate`."""

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
    """How the authors of a checkpoint decode it: options of `generate`.

    Out of their cards and quick starts, see `dlm models NAME` for which; as in

        dlm.generate(model, prompts, **dlm.recommended(model) | {"gen_length": 64})

    Args:
        model: a Hugging Face id, a folder of that name, or a model that was loaded from either.

    Raises:
        ValueError: no settings of it are known; the message has the close match and the list. Or
            it is none of the three.
    """
    return options_of(recommendation(model))


def options_of(found: Recommended) -> dict[str, Any]:
    """A copy, to be changed at will."""
    return copy.deepcopy(dict(found.options))


def recommendation(model: "str | os.PathLike[str] | Model") -> Recommended:
    """The settings, and where they are from.

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
    assert found is not None  # else it was refused
    return found


def name_of(model: "str | os.PathLike[str] | Model") -> str:
    """What a model was loaded from.

    Raises:
        ValueError: it is no model.
    """
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    from dlm.models.model import Model  # which needs torch

    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a Hugging Face id, a folder or what dlm.load makes, got {model!r}"
        )
    return str(model.network.config.name_or_path)


def is_built_in(name: str) -> bool:
    """Whether it stands for the built-in model, or is where that was loaded from."""
    return name == BUILT_IN_NAME or Path(name).parts[-3:] == ("dlm", "assets", "tiny")


def lookup(name: str) -> Recommended | None:
    """The settings of a checkpoint, whoever's copy or folder it is; None if none are known."""
    parts = {part.lower() for part in last_parts(name)}
    for each in RECOMMENDED:
        if parts & {checkpoint.rpartition("/")[2].lower() for checkpoint in each.checkpoints}:
            return each
    return None
