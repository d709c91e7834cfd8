"""Files of a checkpoint: in a folder, or on the Hub and in its local cache."""

import json
from pathlib import Path
from typing import Any


def cached(source: str, name: str, **where: Any) -> str | None:
    """The path of a file of the checkpoint, downloaded if necessary; None if it does not exist.

    Args:
        source: a folder or a Hugging Face id.
        name: of the file.
        where: revision, subfolder, token and so on, as transformers' `cached_file` takes them.
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
    """A remark for an error message, if the source is no folder and so was sought on the Hub."""
    if Path(source).is_dir():
        return ""
    return " (there is no such folder, so it was looked for on the Hugging Face Hub)"


def read_json(source: str, name: str, **where: Any) -> dict[str, Any] | None:
    """The JSON object in a file of the checkpoint; None if there is no such file.

    The arguments are those of `cached`.

    Raises:
        ValueError: the file is corrupt or holds no object.
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
