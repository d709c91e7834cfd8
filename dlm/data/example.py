"""A prompt with its reference response, and the reader for files of a user's own examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from dlm.options import writable


@dataclass(frozen=True, slots=True)
class Example:
    """One training or test item, as plain text without the chat template."""

    task: str
    prompt: str
    response: str
    where: str = field(default="", compare=False, repr=False)  # file and line, if read from a file


@dataclass(frozen=True, slots=True)
class Task:
    """A generator of examples, and the rule that scores an answer."""

    name: str
    generate: Callable[[Random], Example]
    is_correct: Callable[[str, str], bool]  # (prompt, response); never raises
    description: str


def load_examples(path: str | Path) -> list[Example]:
    """Reads a JSONL file whose lines are objects with the keys `prompt` and `response`.

    Args:
        path: the file; blank lines are skipped. The file's stem becomes the task name.

    Returns:
        The examples in the file's order.

    Raises:
        ValueError: a line is not such an object; the message names the file and the line.
    """
    path = Path(path)
    examples = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                fields = string_fields(line, ("prompt", "response"), where)
                examples.append(Example(path.stem, fields["prompt"], fields["response"], where))
    return examples


def string_fields(line: bytes, keys: tuple[str, ...], where: str) -> dict[str, str]:
    """Parses one JSON line and returns the string values of `keys`."""
    try:
        # Windows editors may start a file with a byte order mark, which is not part of the line.
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a line of JSON in UTF-8 ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    fields = {}
    for key in keys:
        if key not in record:
            told = ", ".join(map(repr, record)) or "none"
            raise ValueError(f"{where}: must have {key!r}, got the keys {told}")
        value = record[key]
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key!r} must be a string, got {value!r}")
        fields[key] = writable(value, f"{where}: {key!r}")
    return fields
