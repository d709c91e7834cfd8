"""The training data of `dlm train` and `dlm distill certainty`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlm.data import TASKS, Example, load_examples, make_task

FILE = "file"  # name of the task whose examples come from the user's file


def choose_tasks(shares: Mapping[str, float], data: Path | None) -> dict[str, float]:
    """The share of each task: as given, else the user's file alone, else all tasks equally.

    Raises:
        ValueError: a task is unknown, the task "file" has no data file, or a data file has no
            share.
    """
    for name in shares:
        if name != FILE:
            make_task(name)
    if not shares:
        return {FILE: 1.0} if data is not None else dict.fromkeys(TASKS, 1.0)
    if FILE in shares and data is None:
        raise ValueError(f"--task {FILE} trains on --data, and none was given")
    if FILE not in shares and data is not None:
        raise ValueError(f"--data {str(data)!r} has no share: give --task {FILE}=SHARE as well")
    return dict(shares)


def read_user_examples(data: Path | None, held_out: frozenset[str]) -> Sequence[Example]:
    """Read the user's own examples.

    Raises:
        ValueError: a line is invalid, or all examples are held out.
    """
    if data is None:
        return ()
    examples = load_examples(data)
    held = {prompt.strip() for prompt in held_out}  # stripped, as by chat templates
    if all(example.prompt.strip() in held for example in examples):
        raise ValueError(f"--data {str(data)!r} holds no example to train on")
    return examples
