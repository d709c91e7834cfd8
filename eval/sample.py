"""One line of a run: prompt, output, cost and score."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, get_type_hints

from dlm.eval.fields import misfit

Key = tuple[str, int, int]
"""Template, problem index and sample number: identifies a sample within its run."""

Prompt = tuple[str, int]
"""Template and problem index: shared by all samples of one prompt."""

BOUNDS: dict[str, tuple[float, ...]] = {
    "order": (-1,), "seed": (-(1 << 63),), "scores": (0, 1), "score": (0, 1)
}  # fmt: skip
"""Bounds of the numbers in a field, where they are not 0 and none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded and scored problem: a line of `samples.jsonl`."""

    task: str
    template: str
    id: str  # of the problem
    index: int  # of the problem in its data set
    repeat: int = field(default=0, kw_only=True)  # which of the problem's samples, from 0
    prompt: str | list[dict[str, str]]  # text or chat messages
    prompt_tokens: int
    output: str  # up to the first stop token or stop text; for blanks, all of it
    tokens: list[int]  # the generated span
    order: list[int]  # pass that committed each, -1 if none did; empty if blanks may grow
    response_tokens: int  # before the first stop token; in blanks, all but stop tokens
    decoded_tokens: int  # committed by forward passes, stop tokens included
    forwards: int
    query_tokens: int
    seconds: float  # the row's share of the decoding time of its batch
    answer: str  # reference
    extracted: dict[str, str | None]  # what each metric read
    vote: str | None = field(default=None, kw_only=True)  # what the first read, as votes count it
    scores: dict[str, float]  # 0 to 1, by metric
    score: float  # of the first metric
    detail: str  # how running the code ended; "" if none is run
    seed: int
    settings: str  # hash of the run's settings

    @property
    def key(self) -> Key:
        """The key that identifies the sample within its run."""
        return self.template, self.index, self.repeat

    @property
    def asked(self) -> Prompt:
        """The key that all samples of its prompt share."""
        return self.template, self.index

    @property
    def reading(self) -> str | None:
        """What the first metric read."""
        return next(iter(self.extracted.values()))

    def line(self) -> str:
        """The sample as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of(cls, record: Any) -> "Sample":
        """Parse the sample of a line.

        Old lines have no `repeat` and no `vote`. They are the first samples of their problems, and
        get a vote once the run is resumed, which knows how its task spells answers: see
        `Folder.open`.

        Raises:
            ValueError: the line is not a valid sample.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict):
            raise ValueError(f"a sample must be an object, got {record!r}")
        record = {"repeat": 0, "vote": None} | record
        if set(record) != names:
            missing, more = sorted(names - set(record)), sorted(set(record) - names)
            raise ValueError(f"a sample must have its fields, missing {missing}, unknown {more}")
        for name, hint in kinds().items():
            told = misfit(f"{name!r} of a sample", record[name], hint, *BOUNDS.get(name, ()))
            if told is not None:
                raise ValueError(told)
        first = next(iter(record["scores"].values()), None)
        if record["score"] != first or set(record["scores"]) != set(record["extracted"]):
            raise ValueError(
                "'score' of a sample must be the first of 'scores', which are of what was "
                f"'extracted', got {record['score']} and metrics {[*record['scores']]} of "
                f"{[*record['extracted']]}"
            )
        return cls(**record)


@cache
def kinds() -> dict[str, Any]:
    """The types of a sample's fields."""
    return get_type_hints(Sample)


def by_prompt(samples: Iterable[Sample]) -> dict[Prompt, list[Sample]]:
    """Group samples by prompt."""
    found: defaultdict[Prompt, list[Sample]] = defaultdict(list)
    for each in samples:
        found[each.asked].append(each)
    return dict(found)
