"""Parsing of prompts and options that users type."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlm.given import message_text
from dlm.options import integer, known, writable

Messages = list[dict[str, str]]
KEYS = ("prompt", "messages", "id", "gen_length")  # keys of a JSONL record
WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt, and labels that `--json` repeats beside its result."""

    prompt: str | Messages
    labels: Mapping[str, Any] = field(default_factory=dict)
    gen_length: int | None = None  # the row's own length in tokens


def read_prompts(given: Sequence[str], file: Path | None) -> list[str | Messages]:
    """The prompts of `read_rows`."""
    return [row.prompt for row in read_rows(given, file)]


def read_rows(given: Sequence[str], file: Path | None) -> list[Row]:
    """Read prompts from the command line, else from the file, else from a pipe on stdin.

    Raises:
        ValueError: there is no prompt, both sources are given, a line is not a prompt, or a text
            cannot be encoded as UTF-8.
    """
    if given and file is not None:
        raise ValueError(f"give prompts or --file, not both: got {given[0]!r} and {str(file)!r}")
    if given:
        return [
            Row(writable(text, f"prompt {n} of the command line"))
            for n, text in enumerate(given, start=1)
        ]
    if file is not None and str(file) != "-":
        rows = parse_prompts(decode(file.read_bytes(), str(file)), str(file))
    elif file is not None or not sys.stdin.isatty():
        rows = parse_prompts(decode(sys.stdin.buffer.read(), "stdin"), "stdin")
    else:
        rows = []
    if not rows:
        where = "no prompt" if file is None else f"no prompt in {str(file)!r}"
        raise ValueError(f"{where}: give one, or --file FILE, or pipe one a line")
    return rows


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8 bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be UTF-8: {error}") from error


def parse_prompts(text: str, where: str) -> list[Row]:
    """Parse one prompt per line.

    Lines are JSON objects if the name ends in .jsonl or the first line is one.
    """
    numbered = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), start=1)]
    filled = [(n, line) for n, line in numbered if line.strip()]
    if filled and (where.endswith(".jsonl") or is_object(filled[0][1])):
        return [parse_record(line, f"{where}:{n}") for n, line in filled]
    return [Row(line) for _, line in filled]


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def finite(text: str) -> float:
    """Parse a float, but refuse NaN and infinities: JSON has none, and an id would repeat them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {text}")
    return value


def parse_record(line: str, where: str) -> Row:
    """Parse a JSONL line: a text under "prompt", or chat messages under "messages".

    It may also have an "id", and its own "gen_length".
    """
    try:
        record = json.loads(line, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, as all lines or none: {error}") from error
    keys = sorted({"prompt", "messages"} & set(record)) if isinstance(record, dict) else []
    if len(keys) != 1:
        raise ValueError(f'{where} must be an object with "prompt" or "messages", got {line!r}')
    for key in record:
        known(f"key in {where}", key, KEYS)
    prompt = parse_text if keys == ["prompt"] else parse_messages
    labels = {"id": record["id"]} if "id" in record else {}
    length = record.get("gen_length")
    if length is not None:
        integer(f'{where}: "gen_length"', length, least=1)
    return Row(prompt(record[keys[0]], where), labels, length)


def parse_text(value: Any, where: str) -> str:
    """The prompt of a record."""
    if not isinstance(value, str):
        raise ValueError(f'{where}: "prompt" must be a string, got {value!r}')
    return writable(value, f'{where}: "prompt"')


def parse_messages(value: Any, where: str) -> Messages:
    """The messages of a record."""
    if not isinstance(value, list) or not value or not all(map(is_message, value)):
        raise ValueError(
            f'{where}: "messages" must be a list of {{"role": ..., "content": ...}}, got {value!r}'
        )
    for message in value:
        writable(message["role"], f'{where}: "role" of "messages"')
    content = f'{where}: "content" of "messages"'
    return [{**each, "content": message_text(each["content"], content)} for each in value]


def is_message(value: object) -> bool:
    """Whether a value is a chat message."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str | list)
    )


def as_chat(prompt: str | Messages) -> Messages:
    """A text as one user message; messages as they are."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def with_system(prompt: str | Messages, system: str | None) -> str | Messages:
    """Put the message of `--system` before other messages, if it is given.

    Raises:
        ValueError: the prompt is a text, or its messages already have a system message.
    """
    if system is None:
        return prompt
    if isinstance(prompt, str):
        raise ValueError("--system goes in front of chat messages: give --chat as well")
    if any(message["role"] == "system" for message in prompt):
        raise ValueError("--system goes in front of messages that have none of their own, got one")
    return [{"role": "system", "content": writable(system, "--system")}, *prompt]


def refuse_company(command: str) -> None:
    """Refuse to run as one of several processes that a launcher such as torchrun started.

    Raises:
        ValueError: there are several processes.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdecimal() and int(size) > 1:
        raise ValueError(
            f"{command} is for one process, and WORLD_SIZE={size} says that there are {size}, each "
            "of which would decode and print all: start it without torchrun"
        )


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Parse `key=value` texts into a dict.

    Raises:
        ValueError: a text has no "=", or a key is given twice.
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
    """Parse the decoder options given as `--option key=value`."""
    return {key: parse_value(text) for key, text in parse_pairs("--option", pairs or []).items()}


def parse_bias(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the logit biases given as `--logit-bias id=value`; the library checks their values."""
    return {key: parse_value(text) for key, text in parse_pairs("--logit-bias", pairs).items()}


def parse_value(text: str) -> Any:
    """An int, a float, a bool, None or JSON if the text reads as one; else the text itself."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    for read in (int, float, json.loads):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def parse_shares(pairs: Sequence[str]) -> dict[str, float]:
    """Parse `task=share` texts into a dict of positive shares.

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
