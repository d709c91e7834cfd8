"""What users type, as what the library takes."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm.options import writable

Messages = list[dict[str, str]]
WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_prompts(given: Sequence[str], file: Path | None) -> list[str | Messages]:
    """Prompts of the command line, else of the file, else of a piped stdin.

    Raises:
        ValueError: none, both, a line that is not a prompt, or text that UTF-8 cannot hold.
    """
    if given and file is not None:
        raise ValueError(f"give prompts or --file, not both: got {given[0]!r} and {str(file)!r}")
    if given:
        return [
            writable(text, f"prompt {n} of the command line")
            for n, text in enumerate(given, start=1)
        ]
    if file is not None:
        rows = parse_prompts(decode(file.read_bytes(), str(file)), str(file))
    elif not sys.stdin.isatty():
        rows = parse_prompts(decode(sys.stdin.buffer.read(), "stdin"), "stdin")
    else:
        rows = []
    if not rows:
        where = "no prompt" if file is None else f"no prompt in {str(file)!r}"
        raise ValueError(f"{where}: give one, or --file FILE, or pipe one a line")
    return rows


def decode(data: bytes, where: str) -> str:
    """Text of UTF-8 bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be UTF-8: {error}") from error


def parse_prompts(text: str, where: str) -> list[str | Messages]:
    """One prompt a line: JSON objects in a .jsonl or if the first line is one, else the lines."""
    numbered = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), start=1)]
    filled = [(n, line) for n, line in numbered if line.strip()]
    if filled and (where.endswith(".jsonl") or is_object(filled[0][1])):
        return [parse_record(line, f"{where}:{n}") for n, line in filled]
    return [line for _, line in filled]


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def parse_record(line: str, where: str) -> str | Messages:
    """The prompt of a JSONL line: a text under "prompt", or chat messages under "messages"."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, as all lines or none: {error}") from error
    keys = sorted({"prompt", "messages"} & set(record)) if isinstance(record, dict) else []
    if len(keys) != 1:
        raise ValueError(f'{where} must be an object with "prompt" or "messages", got {line!r}')
    value = record[keys[0]]
    if keys == ["prompt"]:
        if not isinstance(value, str):
            raise ValueError(f'{where}: "prompt" must be a string, got {value!r}')
        return writable(value, f'{where}: "prompt"')
    if not isinstance(value, list) or not value or not all(map(is_message, value)):
        raise ValueError(
            f'{where}: "messages" must be a list of {{"role": ..., "content": ...}}, got {value!r}'
        )
    for message in value:
        for key in ("role", "content"):
            writable(message[key], f'{where}: "{key}" of "messages"')
    return value


def is_message(value: object) -> bool:
    """Whether a value is a chat message."""
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def as_chat(prompt: str | Messages) -> Messages:
    """A text as one user message; messages as they are."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as a dict.

    Raises:
        ValueError: a text without "=", or a key given twice.
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not key or not equals:
            raise ValueError(f"{option} must be key=value, got {pair!r}")
        if key in parsed:
            raise ValueError(f"{option} {key} was given twice: {parsed[key]!r} and {value!r}")
        parsed[key] = value
    return parsed


def parse_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """The options of a decoder, of every `--option key=value`."""
    return {key: parse_value(text) for key, text in parse_pairs("--option", pairs or []).items()}


def parse_value(text: str) -> Any:
    """An int, a float, a bool, None or JSON if the text reads as one, else the text."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    for read in (int, float, json.loads):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def parse_shares(pairs: Sequence[str]) -> dict[str, float]:
    """`task=share` texts as a dict of positive shares.

    Raises:
        ValueError: a share is not a positive number.
    """
    shares: dict[str, float] = {}
    for task, text in parse_pairs("--task", pairs).items():
        value = parse_value(text)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"--task {task} must have a finite share > 0, got {text!r}")
        shares[task] = float(value)
    return shares
