"""The output of `dlm generate`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt and its result: a line of `--json`."""

    prompt: Any  # text, or chat messages
    text: str
    tokens: list[int]
    forwards: int
    query_tokens: int
    tokens_per_forward: float
    seconds: float  # from the first forward pass for any prompt to the last for this one
    seed: int
    decoder: str
    labels: Mapping[str, Any] = field(default_factory=dict)  # of the prompt, repeated

    def record(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        told = asdict(self)
        return {**told.pop("labels"), **told}


def try_file(option: str, path: Path) -> None:
    """Check that a file can be written, before there is any result to lose.

    Raises:
        ValueError: it cannot be written.
    """
    is_new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise ValueError(
            f"{option} must be a file that can be written, got {str(path)!r}: {error.strerror}"
        ) from None
    if is_new:
        path.unlink()  # leave no empty file behind if the command fails


def print_json(record: Any) -> None:
    """Print one object on one line."""
    typer.echo(json.dumps(record))


def print_result(result: Result, *, machine: bool) -> None:
    """Print a result as JSON; or the text, with its cost on stderr."""
    if machine:
        print_json(result.record())
        return
    typer.echo(result.text)
    note(summary(result.forwards, result.tokens_per_forward, result.seconds))


def summary(forwards: int, tokens_per_forward: float, seconds: float) -> str:
    """The cost of a generation as one line."""
    many = "" if forwards == 1 else "s"
    return f"{forwards} forward{many}, {tokens_per_forward:.2f} tokens per forward, {seconds:.2f} s"


class Notes(Console):
    """A console on stderr, where a closed pipe is an error like any other."""

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught: rich would end the process and close stdout as well."""
        raise


def note(text: str) -> None:
    """Print a dim line on stderr.

    Raises:
        OSError: stderr is a closed pipe.
    """
    Notes(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)
