"""How many problems of each task a model solves, by decoder: the built-in model's table.

python -m dlm.training.score --sudoku sudoku_4x4.csv
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.data import TASKS, Example, countdown, generate_examples, sudoku
from dlm.generation import generate
from dlm.models.loading import load
from dlm.models.model import Model

WAYS: dict[str, dict[str, Any]] = {
    "low_confidence, one token a forward": {"decoder": "low_confidence"},
    "low_confidence, four tokens a forward": {"decoder": "low_confidence", "share": 4},
    "threshold 0.9": {"decoder": "threshold"},
    "entropy, one token a forward": {"decoder": "entropy"},
    "margin, one token a forward": {"decoder": "margin"},
    "random, one token a forward": {"decoder": "random"},
    "left_to_right, one token a forward": {"decoder": "left_to_right"},
    "all at once": {"decoder": "low_confidence", "steps": 1},
}
LENGTHS = {
    "sudoku": 20, "countdown": 24, "word_problems": 36, "functions": 36, "arithmetic": 42,
}  # fmt: skip


BATCH = 100  # rows of a forward pass: on one CPU core, neither more nor fewer are faster


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of the table, summed over its examples."""

    right: int
    total: int
    all_forwards: int
    all_decoded: int  # positions that the decoder committed

    @property
    def solved(self) -> float:
        """Share of the examples solved."""
        return self.right / self.total

    @property
    def forwards(self) -> float:
        """Mean forward passes of a row."""
        return self.all_forwards / self.total

    @property
    def tokens_per_forward(self) -> float:
        """Committed positions per forward pass, both summed over rows."""
        return self.all_decoded / self.all_forwards


def score(model: Model, examples: Sequence[Example], length: int, way: dict[str, Any]) -> Score:
    """Decode `length` tokens for every example, and check the answers.

    Args:
        model: from `dlm.load`.
        examples: at least one.
        length: tokens of an answer.
        way: options of `generate`, as one block unless they say otherwise; a `share` s stands for
            a budget of ceil(length / s) forward passes.
    """
    options = {"block_length": None, **way}
    share = options.pop("share", None)
    if share is not None:
        options["steps"] = -(-length // share)
    right = forwards = decoded = 0
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        prompts = [[{"role": "user", "content": example.prompt}] for example in batch]
        keys = range(begin, begin + len(batch))
        out = generate(model, prompts, gen_length=length, row_keys=keys, **options)
        assert out.texts is not None
        right += sum(
            TASKS[example.task].is_correct(example.prompt, text)
            for example, text in zip(batch, out.texts, strict=True)
        )
        forwards += sum(out.forwards)
        decoded += sum(out.decoded)
    return Score(right, len(examples), forwards, decoded)


def held_out(
    task: str, count: int, sudokus: Path | None, countdowns: Path | None = None
) -> list[Example]:
    """The problems of the file if one is given, otherwise distinct examples of the test split."""
    if task == "sudoku" and sudokus is not None:
        return sudoku.read_csv(sudokus)[:count]
    if task == "countdown" and countdowns is not None:
        return countdown.read_jsonl(countdowns)[:count]
    found: dict[str, Example] = {}
    for example in generate_examples(task, 1, count=20 * count, split="test"):
        found.setdefault(example.prompt, example)
    return list(found.values())[:count]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder; the built-in model if absent")
    parser.add_argument("--sudoku", type=Path, help="CSV of puzzles instead of generated ones")
    parser.add_argument("--count", type=int, default=500, help="problems of each task")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="default: all")
    decoders = sorted({way["decoder"] for way in WAYS.values()})
    parser.add_argument(
        "--decoder", action="append", choices=decoders, help="rows of it alone; default: all"
    )
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count must be an int >= 1, got {arguments.count}")
    model = load(arguments.model)
    print("| task | decoder | solved | forwards |\n|---|---|---|---|")
    for task in arguments.task or TASKS:
        examples = held_out(task, arguments.count, arguments.sudoku)
        for name, way in WAYS.items():
            if way["decoder"] not in (arguments.decoder or [way["decoder"]]):
                continue
            cell = score(model, examples, LENGTHS[task], way)
            print(
                f"| {task} ({len(examples)}) | {name} | {cell.solved:.1%} | {cell.forwards:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
