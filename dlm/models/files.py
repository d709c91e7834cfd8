"""Files of a checkpoint: in a folder, or on the Hub and from there in its cache."""

import json
from pathlib import Path
from typing import Any


def cached(source: str, name: str, **where: Any) -> str | None:
    """Where a file of the checkpoint is, None where it has none.

    Args:
        source: a folder or a Hugging Face id.
        name: of the file.
        where: revision, subfolder, token and the like, as `cached_file` of transformers takes them.
    """
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(
        source,
        name,
        **where,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def absent(source: str) -> str:
    """What to add to a message where nothing is found under a name that is no folder."""
    if Path(source).is_dir():
        return ""
    return " (there is no such folder, so it was looked for on the Hugging Face Hub)"


def read_json(source: str, name: str, **where: Any) -> dict[str, Any] | None:
    """The object in a file of the checkpoint, None where it has none; arguments as `cached`.

    Raises:
        ValueError: the file is corrupt.
    """
    path = cached(source, name, **where)
    if path is None:
        return None
    try:
        stated = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError(f"it must hold an object, got {stated!r}")
    except ValueError as error:
        raise ValueError(f"cannot read {name} of {source!r}: {error}") from error
    return stated
