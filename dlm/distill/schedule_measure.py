"""Compare learned schedules with uniform ones, on problems that neither has seen.

python -m dlm.distill.schedule_measure --task sudoku --schedules runs/sudoku \
    --sudoku sudoku_4x4.csv

For each budget N, prints a table in Markdown that compares the base policy with N even steps, the
schedule, and three adaptive policies. An adaptive policy runs at the setting that took the most
forward passes on training prompts, but at most N on average.
"""

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dlm.data import TASKS, Example, generate_examples, read_held_out
from dlm.decoders.artefact import ScheduleArtefact
from dlm.generation import generate
from dlm.models.loading import load
from dlm.models.model import Model
from dlm.training.score import BATCH, held_out

RIVALS: dict[str, list[dict[str, float]]] = {
    "threshold": [
        {"threshold": value} for value in (0.2, 0.4, 0.6, 0.75, 0.9, 0.97, 0.995, 0.9995)
    ],
    "local_leap": [
        *({"threshold": each, "relaxed_threshold": round(0.8 * each, 3)} for each in (0.4, 0.7)),
        *(
            {"threshold": 0.9995, "relaxed_threshold": each}
            for each in (0.75, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9995)
        ),
    ],
    "entropy_bound": [{"gamma": value} for value in (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)],
}
"""Decoders that choose how many tokens to commit, and the settings to try."""

CALIBRATION = 32  # training prompts for calibration
SEED = 23  # for drawing those prompts
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Answers:
    """What one decoder setting made of some problems."""

    right: list[bool]
    forwards: float  # mean forward passes of a problem
    entropy: float  # of the token frequencies over all answers, nats
    distinct: float  # distinct pairs of neighbouring tokens over all pairs

    @property
    def solved(self) -> float:
        """Share of the problems solved."""
        return sum(self.right) / len(self.right)


def answer(
    model: Model, examples: Sequence[Example], length: int, way: Mapping[str, Any]
) -> Answers:
    """Decode every problem as one block and check the answers."""
    right: list[bool] = []
    forwards = 0
    words: list[list[int]] = []
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        out = generate(
            model,
            [[{"role": "user", "content": each.prompt}] for each in batch],
            gen_length=length,
            block_length=None,
            **way,
        )
        assert out.texts is not None
        right += [
            TASKS[each.task].is_correct(each.prompt, text)
            for each, text in zip(batch, out.texts, strict=True)
        ]
        forwards += sum(out.forwards)
        words += [cut(row, model.spec.stop_ids) for row in out.tokens]
    return Answers(right, forwards / len(examples), entropy(words), distinct(words))


def cut(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Tokens before the first stop token."""
    end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def entropy(rows: Sequence[Sequence[int]]) -> float:
    """Entropy of the token frequencies, nats."""
    counts = Counter(token for row in rows for token in row)
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


def distinct(rows: Sequence[Sequence[int]]) -> float:
    """Number of distinct pairs of neighbouring tokens over the number of all pairs."""
    pairs = [pair for row in rows for pair in pairwise(row)]
    return len(set(pairs)) / max(1, len(pairs))


def interval(one: Sequence[bool], two: Sequence[bool]) -> tuple[float, float]:
    """95% interval of the mean of two - one: percentiles of a bootstrap over the problems."""
    gaps = torch.tensor(two).double() - torch.tensor(one).double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(gaps), (RESAMPLES, len(gaps)), generator=generator)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = gaps[drawn].mean(-1).quantile(ends).tolist()
    return low, high


def calibrate(model: Model, examples: Sequence[Example], length: int) -> dict[str, list[float]]:
    """Mean forward passes of every setting of the adaptive policies."""
    return {
        name: [
            answer(model, examples, length, {"decoder": name, "decoder_options": setting}).forwards
            for setting in settings
        ]
        for name, settings in RIVALS.items()
    }


def ways(budget: int, path: Path, found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The decoder settings compared at a budget, the uniform plan first."""
    base = ScheduleArtefact.load(path).base_policy
    chosen: dict[str, Any] = {
        f"{base}, even steps": {"decoder": base, "steps": budget},
        "schedule": {"decoder": "schedule", "decoder_options": {"path": path}},
    }
    for name, forwards in found.items():
        fits = [n for n, mean in enumerate(forwards) if mean <= budget]
        if fits:
            setting = RIVALS[name][max(fits, key=lambda n: forwards[n])]
            label = " ".join(f"{value:g}" for value in setting.values())
            chosen[f"{name} {label}"] = {"decoder": name, "decoder_options": setting}
    return chosen


def row(task: str, budget: int, name: str, found: Answers, uniform: Answers) -> str:
    """A row of the table."""
    gap = "" if found is uniform else f"{100 * (found.solved - uniform.solved):+.1f}"
    ends = [f"{100 * end:+.1f}" for end in interval(uniform.right, found.right)]
    cells = [
        f"{task} ({len(found.right)})",
        str(budget),
        name,
        f"{found.forwards:.2f}",
        f"{found.solved:.1%}",
        gap and f"{gap} [{', '.join(ends)}]",
        f"{found.entropy:.2f}",
        f"{found.distinct:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def schedule_of(folder: Path, task: str, budget: int) -> Path:
    """The schedule's path: in a folder with several tasks, or in the folder of a run."""
    shipped = folder / f"{task}-{budget}.json"
    return shipped if shipped.is_file() else folder / f"schedule-{budget}.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one task."""
    parser = argparse.ArgumentParser(
        prog="python -m dlm.distill.schedule_measure", description=__doc__
    )
    parser.add_argument("--model", help="folder; the built-in model if absent")
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument(
        "--schedules", type=Path, required=True, help="folder of schedule-N.json or TASK-N.json"
    )
    parser.add_argument("--budget", type=int, action="append", help="repeatable; 4, 8 and 16")
    parser.add_argument("--gen-length", type=int, default=64, help="tokens")
    parser.add_argument("--count", type=int, default=200, help="problems")
    parser.add_argument("--sudoku", type=Path, help="CSV of puzzles instead of generated ones")
    given = parser.parse_args(arguments)
    if given.count < 1:
        parser.error(f"--count must be an int >= 1, got {given.count}")
    paths = {n: schedule_of(given.schedules, given.task, n) for n in given.budget or (4, 8, 16)}
    for budget, path in paths.items():
        if not path.is_file():
            parser.error(f"--schedules must hold schedule-{budget}.json, got {given.schedules}")
    model = load(given.model)
    problems = held_out(given.task, given.count, given.sudoku)
    if not problems:
        parser.error(f"--sudoku must hold at least one puzzle, got {given.sudoku}")
    never = read_held_out([] if given.sudoku is None else [given.sudoku])
    training = list(generate_examples(given.task, SEED, count=CALIBRATION, held_out=never))
    print(
        "| task | N | decoder | forwards | solved | points [95%] | entropy | distinct-2 |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    found = calibrate(model, training, given.gen_length)
    for budget, path in paths.items():
        uniform: Answers | None = None
        for name, way in ways(budget, path, found).items():
            made = answer(model, problems, given.gen_length, way)
            uniform = uniform or made
            print(row(given.task, budget, name, made, uniform), flush=True)


if __name__ == "__main__":
    main()
