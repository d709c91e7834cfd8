"""The comparison of decoders: its settings, and the results so far."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dlm.decoders import DECODERS, make
from dlm.training.score import LENGTHS
from dlm.traits import Traits

COUNTS = {"sudoku": 500, "word_problems": 100, "countdown": 100}  # most problems of each task
SHARES = (1, 2, 4, 8)  # tokens per forward pass, for decoders with a budget
DELIMITED = {"delimiter_ids": [17, 19]}  # comma and full stop, which end the steps of an answer


@dataclass(frozen=True, slots=True)
class Way:
    """One setting of a decoder."""

    decoder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    share: int | None = None  # sets a budget of ceil(length / share) passes; None for none
    temperature: float = 0.0
    block_length: int | None = None  # None for one block

    @property
    def random(self) -> bool:
        """Whether the result depends on the seed: tokens or positions are sampled."""
        needs = Traits.of(make(self.decoder, **self.options)).needs
        return self.temperature > 0 or bool(needs & {"uniform", "branch_noise"})

    @property
    def label(self) -> str:
        """The options that differ from the defaults."""
        parts = [f"{name} {value}" for name, value in self.options.items()]
        parts += [] if self.share is None else [f"{self.share} a forward"]
        parts += [f"temperature {self.temperature:g}"] if self.temperature else []
        parts += [] if self.block_length is None else [f"blocks of {self.block_length}"]
        return ", ".join(parts) or "defaults"


def ways(
    decoder: str,
    *options: Mapping[str, Any],
    shares: Sequence[int | None] = (None,),
    temperature: float = 0.0,
    block_length: int | None = None,
) -> list[Way]:
    """Every combination of options and shares."""
    chosen = options or ({},)
    rest = temperature, block_length
    return [Way(decoder, each, share, *rest) for each in chosen for share in shares]


def sweep(decoder: str, option: str, *values: Any) -> list[Way]:
    """Several values of one option."""
    return ways(decoder, *({option: value} for value in values))


SETTINGS: dict[str, list[Way]] = {
    **{
        name: ways(name, shares=SHARES)
        for name in ("low_confidence", "random", "left_to_right", "entropy", "margin")
    },
    "schedule": ways("schedule", shares=(4,)),  # without an artefact it equals low_confidence
    "dilated": ways("dilated", {}, {"base": 3}),
    "first_hitting": [
        *ways("first_hitting", shares=(4,)),
        *ways("first_hitting", shares=SHARES, temperature=1.0),
        *ways("first_hitting", {"order": 2}, shares=(4,), temperature=1.0),
    ],
    "ancestral": [
        *ways("ancestral", shares=(4,)),
        *ways("ancestral", shares=(1, 4, 8), temperature=1.0),
    ],
    "dream": [
        *ways("dream", shares=SHARES),
        *ways("dream", {"alg": "origin"}, shares=(4,)),
    ],
    "pc_sampler": [
        *ways("pc_sampler", shares=SHARES),
        *ways("pc_sampler", {"lambda_": 0.0}, shares=(4,)),
    ],
    "certainty_prior": [
        *ways("certainty_prior", shares=SHARES),
        *ways("certainty_prior", {"sigma": 2.0}, shares=(4,)),
    ],
    "prophet": ways("prophet", shares=(None, 2, 4)),
    "mean_field": sweep("mean_field", "threshold", 0.7, 0.9, 0.97),
    "threshold": sweep("threshold", "threshold", 0.5, 0.7, 0.9),
    "factor": sweep("factor", "factor", 0.5, 1.0, 2.0),
    "frechet": sweep("frechet", "delta", 0.1, 0.25, 0.5),
    "entropy_bound": sweep("entropy_bound", "gamma", 0.01, 0.1, 1.0),
    "entropy_threshold": sweep("entropy_threshold", "threshold", 0.1, 0.5, 1.0),
    "multi_block": [
        *ways("multi_block", {"sub_block_length": 8}, {"sub_block_length": 4}),
        *ways("multi_block", {"sub_block_length": 8, "block_add_threshold": 0.5}),
        *ways("multi_block", {"sub_block_length": 8, "variant": "dream"}),
    ],
    "d2f": [
        *ways("d2f", {}, {"blocks": 1}, {"threshold": 0.7}, block_length=8),
        *ways("d2f", block_length=4),
    ],
    "deferred_commitment": [
        *ways("deferred_commitment", {"window": 4}, {"window": 8}, {"window": 16}),
        *ways("deferred_commitment", {"window": 8, "threshold": 0.7}),
    ],
    "wedlm": [
        *ways("wedlm", {"window": 8}, {}, {"threshold": 0.1}),
        *ways("wedlm", {"penalty": 0.1}),
    ],
    "adaptive_block": [
        *ways("adaptive_block", {"sub_block_length": 8, **DELIMITED}),
        *ways("adaptive_block", {"sub_block_length": 8, "delimiter_threshold": 1.0, **DELIMITED}),
    ],
    "ssd": [
        *sweep("ssd", "branches", 2, 4, 8),
        *ways("ssd", {"score": "entropy", "branches": 4}),
        *ways("ssd", shares=(2,)),
        *ways("ssd", {"threshold": 0.7}, {"threshold": 0.9}),
    ],
    "lopa": [
        *sweep("lopa", "branches", 1, 2, 4, 8),
        *ways("lopa", {"threshold": 0.7}, {"branches": 8, "threshold": 0.7}),
        *ways("lopa", {"score": "entropy", "alpha": 0.0, "share": 1.0}),
    ],
    "info_gain": [
        *ways("info_gain", {}, {"threshold": 2.0}),
        *ways("info_gain", {"threshold": 2.0}, shares=(4,)),
    ],
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
        *ways("remdm", {"variant": "llada_remdm"}),
        *ways("remdm", *({"variant": v} for v in ("cap", "rescale", "conf", "loop")), shares=(2,)),
    ],
    "block_refinement": ways("block_refinement", {}, {"editing_threshold": 0.9}),
}
"""The settings that are compared; decoders that are not listed run with their defaults."""


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
        """The fields that identify the cell's line in the results."""
        length = LENGTHS[self.task]
        return {
            "task": self.task,
            "decoder": self.way.decoder,
            "options": dict(self.way.options),
            "steps": None if self.way.share is None else -(-length // self.way.share),
            "temperature": self.way.temperature,
            "seed": self.seed,
            **({} if self.way.block_length is None else {"block_length": self.way.block_length}),
        }


def plan(decoders: Collection[str], seeds: int) -> Iterator[Cell]:
    """Every cell, in the order of the results."""
    for task in COUNTS:
        for decoder in decoders:
            for way in settings_of(decoder):
                for seed in range(seeds if way.random else 1):
                    yield Cell(task, way, seed)


class Results:
    """The lines of `results.jsonl`, by their keys."""

    FIELDS = ("task", "decoder", "options", "steps", "temperature", "seed")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            *whole, rest = path.read_text().split("\n")  # an incomplete line after the last newline
            if rest:
                path.write_text("".join(f"{line}\n" for line in whole))
            for line in map(json.loads, whole):
                self.lines[self.name(line)] = line

    @classmethod
    def name(cls, line: Mapping[str, Any]) -> str:
        """The key of a line, as text."""
        told = [line[each] for each in cls.FIELDS]
        return json.dumps([*told, line.get("block_length")], sort_keys=True)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line to the file."""
        self.lines[self.name(line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget(self, decoders: Collection[str]) -> None:
        """Remove the results of some decoders."""
        self.lines = {k: v for k, v in self.lines.items() if v["decoder"] not in decoders}
        self.write(self.lines.values())

    def sort(self) -> None:
        """Sort the file in the order of the plan, and drop settings that are no longer compared."""
        seeds = 1 + max(line["seed"] for line in self.lines.values())
        names = [self.name(cell.key) for cell in plan(DECODERS, seeds)]
        self.write(self.lines[name] for name in names if name in self.lines)

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replace the file."""
        draft = self.path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines))
        draft.replace(self.path)


@dataclass(frozen=True, slots=True)
class Point:
    """The results of one setting on one task, over its seeds."""

    way: Way
    solved: float  # percent, mean
    spread: float | None  # standard deviation over seeds, percentage points; None for a single seed
    forwards: float
    tokens_per_forward: float


def points(results: Results, task: str, decoder: str) -> list[Point | None]:
    """One point for each setting of a decoder; None where it has not been run."""
    found: list[Point | None] = []
    for way in settings_of(decoder):
        key = Cell(task, way, 0).key
        lines = [
            line
            for line in results.lines.values()
            if results.name(line | {"seed": 0}) == results.name(key)
        ]
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
