"""Device time of the steps of a decoding, by how each step was run.

The engine runs the first step of a shape plainly, records the second and replays all later ones
(`dlm.recording`). A mean over all of them would say little about the replayed steps, which are most
of a long generation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dlm.bench.events import Gpu
from dlm.bench.timing import Spread
from dlm.progress import ForwardPlan, Scope
from dlm.recording import Recording, Steps

KINDS = ("plain", "recorded", "replayed")
PARTS = ("whole rows", "window", "window and some whole rows", "answers", "window and some answers")


@dataclass(frozen=True, slots=True)
class Span:
    """One step."""

    kind: str  # one of `KINDS`; the second step of a shape is recorded and then played
    part: str  # one of `PARTS`: what was computed
    begin: Any  # marks of the device
    end: Any


@contextmanager
def watched(gpu: Gpu) -> Iterator[list[Span]]:
    """Collect the steps that this process runs inside the context."""
    spans: list[Span] = []
    within: list[str] = []  # how the current step is run
    run, make, play = Steps.__call__, Recording.__init__, Recording.__call__

    def step(self: Steps, canvas: Any, progress: Any, plan: ForwardPlan) -> Any:
        within.clear()
        begin = gpu.mark()
        outcome = run(self, canvas, progress, plan)
        spans.append(Span(within[0] if within else "plain", part_of(plan), begin, gpu.mark()))
        return outcome

    def made(self: Recording, *given: Any) -> None:
        make(self, *given)
        within.append("recorded")

    def played(self: Recording, *given: Any) -> Any:
        within.append("replayed")
        return play(self, *given)

    owners: list[tuple[type, str, Any, Any]] = [
        (Steps, "__call__", step, run),
        (Recording, "__init__", made, make),
        (Recording, "__call__", played, play),
    ]
    for owner, name, spy, _ in owners:
        setattr(owner, name, spy)
    try:
        yield spans
    finally:
        for owner, name, _, own in owners:
            setattr(owner, name, own)


def part_of(plan: ForwardPlan) -> str:
    """What a forward pass computes, as one of `PARTS`."""
    named = {Scope.ROW: PARTS[0], Scope.WINDOW: PARTS[1], Scope.ANSWER: PARTS[3]}
    return PARTS[2 if Scope.ROW in plan.scopes else 4] if plan.scope is None else named[plan.scope]


def told(spans: list[Span], gpu: Gpu, reading: float) -> dict[str, int | float]:
    """The entries of a result about steps.

    Args:
        spans: steps of one decoding, in order.
        gpu: the device that marked them.
        reading: seconds to read the weights once.
    """
    met = {*PARTS[:2], *(span.part for span in spans)}
    took: dict[tuple[str, str], list[float]] = {
        (kind, part): [] for kind in KINDS for part in PARTS if part in met
    }
    for span in spans:
        took[span.kind, span.part].append(gpu.between(span.begin, span.end))
    found: dict[str, int | float] = {}
    for (kind, part), values in took.items():
        name = f"{kind}, {part}"
        found[f"steps {name}"] = len(values)
        if values:
            median = Spread.of(values).median
            found[f"ms per step {name}"] = 1e3 * median
            if kind == "replayed":
                found[f"step {name} / reading the weights once"] = median / reading
    gaps = [
        gpu.between(one.end, other.begin)
        for one, other in pairwise(spans)
        if one.kind == other.kind == "replayed"
    ]
    if gaps:
        found["ms from a replayed step to the next"] = 1e3 * Spread.of(gaps).median
    return found
