"""What `dlm generate` prints."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt and what came of it: a line of `--json`."""

    prompt: Any  # text, or chat messages
    text: str
    tokens: list[int]
    forwards: int
    query_tokens: int
    tokens_per_forward: float
    seconds: float  # from the first forward of all prompts to the last of this one
    seed: int
    decoder: str
    labels: Mapping[str, Any] = field(default_factory=dict)  # of the prompt, told again

    def record(self) -> dict[str, Any]:
        """The object of `--json`."""
        told = asdict(self)
        return {**told.pop("labels"), **told}


def try_file(option: str, path: Path) -> None:
    """Find out whether a file can be written, before there is anything to lose.

    Raises:
        ValueError: it cannot.
    """
    is_new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise ValueError(
            f"{option} must be a file that can be written, got {str(path)!r}: {error.strerror}"
        ) from None
    if is_new:
        path.unlink()  # nothing is left where nothing comes of it


def print_json(record: Any) -> None:
    """One object on one line."""
    typer.echo(json.dumps(record))


def print_result(result: Result, *, machine: bool) -> None:
    """JSON for machines; for people the text, and on stderr what it took."""
    if machine:
        print_json(result.record())
        return
    typer.echo(result.text)
    note(summary(result.forwards, result.tokens_per_forward, result.seconds))


def summary(forwards: int, tokens_per_forward: float, seconds: float) -> str:
    """What a generation took."""
    many = "" if forwards == 1 else "s"
    return f"{forwards} forward{many}, {tokens_per_forward:.2f} tokens per forward, {seconds:.2f} s"


class Notes(Console):
    """A console on stderr. Where nobody reads it that is an error as any other."""

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught: its own way ends the process, and closes stdout as well."""
        raise


def note(text: str) -> None:
    """A dim line on stderr.

    Raises:
        OSError: nobody reads it.
    """
    Notes(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)
