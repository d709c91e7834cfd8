"""Training and test data of the built-in model: five generated tasks, and readers for files.

    for example in generate_examples("sudoku", seed=0, count=3):
        print(example.prompt, example.response)

Importing this package needs only the standard library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Literal

from dlm.data import arithmetic, countdown, functions, sudoku, word_problems
from dlm.data.example import Example, Task, load_examples
from dlm.data.splits import is_held_out
from dlm.options import known

__all__ = [
    "TASKS",
    "Example",
    "Task",
    "generate_examples",
    "is_held_out",
    "load_examples",
    "make_task",
    "read_held_out",
]

TASKS: dict[str, Task] = {
    "sudoku": Task("sudoku", sudoku.generate, sudoku.is_correct, "Complete a 4x4 sudoku."),
    "countdown": Task(
        "countdown", countdown.generate, countdown.is_correct, "Reach a number from three others."
    ),
    "word_problems": Task(
        "word_problems",
        word_problems.generate,
        word_problems.is_correct,
        "Solve a short word problem in two or three steps.",
    ),
    "functions": Task(
        "functions",
        functions.generate,
        functions.is_correct,
        "Complete a small Python function from its docstring.",
    ),
    "arithmetic": Task(
        "arithmetic", arithmetic.generate, arithmetic.is_correct, "Compute four results."
    ),
}


def make_task(name: str) -> Task:
    """Returns the task of this name.

    Raises:
        ValueError: there is none; the message suggests the closest and lists all.
    """
    return TASKS[known("task", name, TASKS)]


def generate_examples(
    task: str,
    seed: int,
    *,
    count: int | None = None,
    held_out: frozenset[str] = frozenset(),
    split: Literal["train", "test"] = "train",
) -> Iterator[Example]:
    """Yields examples of a task; the sequence depends only on the arguments.

    The splits divide prompts by `is_held_out`, so no training prompt is ever a test prompt.
    A prompt may occur more than once.

    Args:
        task: a key of `TASKS`.
        seed: of the sequence; the two splits of a seed are unrelated.
        count: number of examples; None for an endless sequence.
        held_out: prompts that are never generated, such as those of a published test file.
        split: "test" for the prompts with `is_held_out`, "train" for the others.

    Returns:
        An iterator of examples.

    Raises:
        ValueError: the task or the split is unknown, or `count` is negative.
    """
    source = make_task(task)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if count is not None and count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    examples = _draw(source, Random(f"{task}/{split}/{seed}"), held_out, split == "test")
    return itertools.islice(examples, count)


def _draw(task: Task, rng: Random, held_out: frozenset[str], test: bool) -> Iterator[Example]:
    """Yields the examples on one side of the split, without end."""
    while True:
        example = task.generate(rng)
        if example.prompt not in held_out and is_held_out(example.prompt) == test:
            yield example


def read_held_out(paths: Iterable[str | Path]) -> frozenset[str]:
    """Returns the prompts of published test files, whose format is detected from their content.

    Args:
        paths: sudoku files (CSV with `Puzzle,Solution`) and countdown files (JSONL with `input`
            and `output`).

    Raises:
        ValueError: a file has neither format, or has an invalid row.
    """
    prompts: set[str] = set()
    for path in paths:
        prompts.update(example.prompt for example in _read_puzzles(Path(path)))
    return frozenset(prompts)


def _read_puzzles(path: Path) -> list[Example]:
    """Reads a file in either of the two published formats."""
    with path.open("rb") as lines:
        line = lines.readline()
    try:
        first = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from None
    if first.startswith("{"):
        return countdown.read_jsonl(path)
    if set(sudoku.CSV_COLUMNS) <= set(first.split(",")):
        return sudoku.read_csv(path)
    raise ValueError(f"{path}: neither a sudoku CSV nor a countdown JSONL, starts {first[:40]!r}")
