"""Accuracy against forwards of every decoder on the built-in model: docs/decoders.md.

python -m dlm.training.compare --sudoku ../shared/data/sudoku_4x4.csv \
    --countdown ../shared/data/countdown.jsonl --out docs/decoders
python -m dlm.training.compare --render --out docs/decoders

The first command appends a line to `results.jsonl` for every cell it finishes and passes over those
that are there, so a run that died goes on. The second one writes the tables between the marker
comments of `docs/decoders.md` and draws `docs/decoders/accuracy.svg`.
"""

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dlm.data import Example
from dlm.decoders import DECODERS, make
from dlm.models.loading import load
from dlm.models.model import Model
from dlm.training.score import LENGTHS, held_out, score
from dlm.traits import Traits

COUNTS = {"sudoku": 500, "word_problems": 100, "countdown": 100}  # problems, at most
SHARES = (1, 2, 4, 8)  # tokens a forward, for decoders that follow a budget
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True, slots=True)
class Way:
    """One setting of a decoder."""

    decoder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    share: int | None = None  # a budget of ceil(length / share) forwards; None for no budget
    temperature: float = 0.0

    @property
    def random(self) -> bool:
        """Whether the seed matters: tokens or positions are drawn."""
        needs = Traits.of(make(self.decoder, **self.options)).needs
        return self.temperature > 0 or "uniform" in needs

    @property
    def label(self) -> str:
        """What differs from the defaults."""
        parts = [f"{name} {value}" for name, value in self.options.items()]
        parts += [] if self.share is None else [f"{self.share} a forward"]
        parts += [f"temperature {self.temperature:g}"] if self.temperature else []
        return ", ".join(parts) or "defaults"


def ways(
    decoder: str,
    *options: Mapping[str, Any],
    shares: Sequence[int | None] = (None,),
    temperature: float = 0.0,
) -> list[Way]:
    """Every combination of options and shares."""
    chosen = options or ({},)
    return [Way(decoder, each, share, temperature) for each in chosen for share in shares]


def sweep(decoder: str, option: str, *values: Any) -> list[Way]:
    """One option, several values."""
    return ways(decoder, *({option: value} for value in values))


SETTINGS: dict[str, list[Way]] = {
    **{
        name: ways(name, shares=SHARES)
        for name in ("low_confidence", "random", "left_to_right", "entropy", "margin", "schedule")
    },
    "dilated": ways("dilated", {}, {"base": 3}),
    "first_hitting": [
        *ways("first_hitting", shares=(4,)),
        *ways("first_hitting", shares=SHARES, temperature=1.0),
        *ways("first_hitting", {"order": 2}, shares=(4,), temperature=1.0),
    ],
    "ancestral": [
        *ways("ancestral", shares=(4,)),
        *ways("ancestral", shares=SHARES, temperature=1.0),
    ],
    "dream": [
        *ways("dream", shares=SHARES),
        *ways("dream", {"alg": "origin"}, shares=(4,)),
    ],
    "pc_sampler": [
        *ways("pc_sampler", shares=SHARES),
        *ways("pc_sampler", {"lambda_": 0.0}, shares=(1, 4)),
    ],
    "threshold": sweep("threshold", "threshold", 0.5, 0.7, 0.9),
    "factor": sweep("factor", "factor", 0.5, 1.0, 2.0),
    "frechet": sweep("frechet", "delta", 0.1, 0.25, 0.5),
    "entropy_bound": sweep("entropy_bound", "gamma", 0.01, 0.1, 1.0),
    "entropy_threshold": sweep("entropy_threshold", "threshold", 0.1, 0.5, 1.0),
    "local_leap": ways("local_leap", {}, {"relaxed_threshold": 0.5}),
    "hierarchical": ways("hierarchical", {}, {"remask": True}),
    "credit": ways("credit", {}, {"adaptive": True}),
    "klass": sweep("klass", "threshold", 0.6, 0.9),
    "saber": [
        *sweep("saber", "n", 1, 2, 4),
        *ways("saber", {"n": 2, "preset": "paper"}, {"n": 2, "preset": "safe"}),
    ],
    "wino": sweep("wino", "threshold", 0.5, 0.6, 0.8),
    "remdm": [
        *ways("remdm", shares=(None, *SHARES)),
        *ways("remdm", *({"variant": v} for v in ("cap", "rescale", "conf", "loop")), shares=(1,)),
    ],
    "block_refinement": ways("block_refinement", {}, {"editing_threshold": 0.9}),
}
"""What is compared; a decoder that is not listed runs with its defaults."""


def settings_of(decoder: str) -> list[Way]:
    """The settings of one decoder."""
    return SETTINGS.get(decoder) or ways(decoder)


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting on one task with one seed."""

    task: str
    way: Way
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """The fields of its line that tell it from the others."""
        length = LENGTHS[self.task]
        return {
            "task": self.task,
            "decoder": self.way.decoder,
            "options": dict(self.way.options),
            "steps": None if self.way.share is None else -(-length // self.way.share),
            "temperature": self.way.temperature,
            "seed": self.seed,
        }


def plan(decoders: Sequence[str], seeds: int) -> Iterator[Cell]:
    """Every cell, in the order of the results."""
    for task in COUNTS:
        for decoder in decoders:
            for way in settings_of(decoder):
                for seed in range(seeds if way.random else 1):
                    yield Cell(task, way, seed)


class Results:
    """The lines of `results.jsonl`, by what they are about."""

    FIELDS = ("task", "decoder", "options", "steps", "temperature", "seed")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            *whole, rest = path.read_text().split("\n")  # what follows the last newline was cut
            if rest:
                path.write_text("".join(f"{line}\n" for line in whole))
            for line in map(json.loads, whole):
                self.lines[self.name(line)] = line

    @classmethod
    def name(cls, line: Mapping[str, Any]) -> str:
        """The key of a line as text."""
        return json.dumps([line[each] for each in cls.FIELDS], sort_keys=True)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line to the file."""
        self.lines[self.name(line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget(self, decoders: Sequence[str]) -> None:
        """Drop what is known of some decoders."""
        self.lines = {k: v for k, v in self.lines.items() if v["decoder"] not in decoders}
        self.write(self.lines.values())

    def sort(self, seeds: int) -> None:
        """Put the file into the order of the plan, without lines that are of no plan."""
        names = [self.name(cell.key) for cell in plan(list(DECODERS), seeds)]
        self.write(self.lines[name] for name in names if name in self.lines)

    def write(self, lines: Any) -> None:
        """Replace the file."""
        draft = self.path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines))
        draft.replace(self.path)


def checksum(model: Model, examples: Mapping[str, Sequence[Example]]) -> str:
    """CRC-32 of the weights and the prompts: what a result depends on besides the code."""
    crc = 0
    for _, weight in sorted(model.network.state_dict().items()):
        crc = zlib.crc32(weight.detach().cpu().numpy().tobytes(), crc)
    for task, problems in examples.items():
        crc = zlib.crc32("\n".join([task, *(each.prompt for each in problems)]).encode(), crc)
    return f"{crc:08x}"


def run(
    model: Model,
    examples: Mapping[str, Sequence[Example]],
    results: Results,
    decoders: Sequence[str],
    seeds: int,
) -> None:
    """Decode every cell that has no line yet.

    Raises:
        ValueError: the file holds results of another model or of other problems.
    """
    inputs = checksum(model, examples)
    if any(line["inputs"] != inputs for line in results.lines.values()):
        raise ValueError(
            f"{results.path} must hold results of this model and these problems alone: "
            "move it away, or give the same --count and files"
        )
    cells = list(plan(decoders, seeds))
    for number, cell in enumerate(cells, start=1):
        if results.name(cell.key) in results.lines:
            continue
        way = {
            "decoder": cell.way.decoder,
            "decoder_options": cell.way.options,
            "share": cell.way.share,
            "temperature": cell.way.temperature,
            "seed": cell.seed,
        }
        found = score(model, examples[cell.task], LENGTHS[cell.task], way)
        results.add(
            {
                **cell.key,
                "solved": found.right,
                "total": found.total,
                "forwards": round(found.forwards, 4),
                "tokens_per_forward": round(found.tokens_per_forward, 4),
                "inputs": inputs,
            }
        )
        what = f"{cell.task} {cell.way.decoder} ({cell.way.label}) seed {cell.seed}"
        told = f"{found.solved:.1%} solved, {found.forwards:.1f} forwards"
        print(f"[{number}/{len(cells)}] {what}: {told}", file=sys.stderr, flush=True)
    results.sort(seeds)


@dataclass(frozen=True, slots=True)
class Point:
    """A setting on a task, over its seeds."""

    way: Way
    solved: float  # percent, mean
    spread: float | None  # standard deviation over seeds, percent points; None without seeds
    forwards: float
    tokens_per_forward: float


def points(results: Results, task: str, decoder: str) -> list[Point | None]:
    """One for each setting of a decoder, None where it has not been run."""
    found: list[Point | None] = []
    for way in settings_of(decoder):
        names = (results.name(Cell(task, way, seed).key) for seed in range(len(results.lines)))
        lines = [results.lines[name] for name in names if name in results.lines]
        if not lines:
            found.append(None)
            continue
        solved = [100 * line["solved"] / line["total"] for line in lines]
        found.append(
            Point(
                way,
                mean(solved),
                stdev(solved) if len(solved) > 1 else None,
                mean(line["forwards"] for line in lines),
                mean(line["tokens_per_forward"] for line in lines),
            )
        )
    return found


def table(results: Results) -> str:
    """All settings by all tasks, in Markdown."""
    totals = {line["task"]: line["total"] for line in results.lines.values()}
    head = ["decoder", "setting"]
    for task in COUNTS:
        head += [f"{task} ({totals.get(task, 0)}), %", "forwards", "tokens / forward"]
    rows = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for decoder in DECODERS:
        for way, *found in zip(
            settings_of(decoder), *(points(results, task, decoder) for task in COUNTS), strict=True
        ):
            row = [f"`{decoder}`", way.label]
            for point in found:
                if point is None:
                    row += ["-"] * 3
                    continue
                spread = "" if point.spread is None else f" +- {point.spread:.1f}"
                row += [f"{point.solved:.1f}{spread}"]
                row += [f"{point.forwards:.1f}", f"{point.tokens_per_forward:.2f}"]
            rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def render(results: Results, page: Path, picture: Path) -> None:
    """Write the table into the page, and the picture.

    Raises:
        ValueError: matplotlib is missing, or the page has no markers.
    """
    plot = pyplot()
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must have {BEGIN} and {END} once each, around its tables")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    draw(plot, results, picture)


def pyplot() -> Any:
    """Matplotlib's plotting interface.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import_module("matplotlib").use("agg")
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ValueError(
            "--render needs matplotlib, of the extra plot: pip install 'dlm[plot]'"
        ) from error


def draw(plot: Any, results: Results, picture: Path) -> None:
    """TODO."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, or render what a run has left."""
    parser = argparse.ArgumentParser(prog="python -m dlm.training.compare", description=__doc__)
    parser.add_argument("--model", help="folder; the built-in model if absent")
    parser.add_argument("--sudoku", type=Path, help="CSV of puzzles, needed for a run")
    parser.add_argument("--countdown", type=Path, help="JSONL instead of generated problems")
    parser.add_argument("--count", type=int, help=f"problems of each task, at most {COUNTS}")
    parser.add_argument("--seeds", type=int, default=3, help="of settings that draw; 3")
    parser.add_argument("--decoder", action="append", choices=list(DECODERS), help="default: all")
    parser.add_argument("--again", action="store_true", help="forget what the decoders have done")
    parser.add_argument("--render", action="store_true", help="tables and picture; decodes nothing")
    parser.add_argument("--out", type=Path, required=True, help="folder; its page is OUT.md")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results(given.out / "results.jsonl")
    try:
        if given.render:
            render(results, given.out.with_suffix(".md"), given.out / "accuracy.svg")
            return
        if given.sudoku is None:
            raise ValueError("a run needs --sudoku")
        decoders = given.decoder or list(DECODERS)
        if given.again:
            results.forget(decoders)
        examples = {
            task: held_out(task, min(most, given.count or most), given.sudoku, given.countdown)
            for task, most in COUNTS.items()
        }
        run(load(given.model), examples, results, decoders, given.seeds)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
