"""What `dlm train` draws its batches from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlm.data import TASKS, Example, load_examples, make_task

FILE = "file"  # the task whose examples are the user's


def choose_tasks(shares: Mapping[str, float], data: Path | None) -> dict[str, float]:
    """Share of each task: as given, else of the user's file, else all alike.

    Raises:
        ValueError: an unknown task, or a file and the task "file" without each other.
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
    """The user's own examples.

    Raises:
        ValueError: a bad line, or no example but held-out ones.
    """
    if data is None:
        return ()
    examples = load_examples(data)
    held = {prompt.strip() for prompt in held_out}  # chat templates trim prompts
    if all(example.prompt.strip() in held for example in examples):
        raise ValueError(f"--data {str(data)!r} holds no example to train on")
    return examples
