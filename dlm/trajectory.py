"""What happened at each forward, row by row.

Shapes: B rows, W window, G generated span.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.runtime import Step


class Change(NamedTuple):
    """One position that a forward committed, remasked or edited."""

    step: int  # forward, from 0
    position: int  # index into the generated span
    token: int  # what stands there afterwards; for a remask, what stood there before
    confidence: float  # p(token) by the law the decoder scores by; NaN where not measured


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The forwards of one row."""

    canvases: Tensor  # int64 [forwards, G], the generated span as each forward saw it
    commits: list[Change]
    remasks: list[Change]
    edits: list[Change]
    times: list[float] = field(default_factory=list)
    """Diffusion time after each forward, from 1 to 0; none where the decoder has no clock."""


class Recorder:
    """Collects the forwards of a generation as they are made."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        """Take the first position of the generated span of each row, and one past its last."""
        self.spans = spans
        self.canvases: list[list[Tensor]] = [[] for _ in spans]
        self.times: list[list[float]] = [[] for _ in spans]
        self.changes: list[dict[str, list[Change]]] = [
            {"commits": [], "remasks": [], "edits": []} for _ in spans
        ]

    def add(self, step: Step) -> None:
        """Keep what a forward saw and changed."""
        tokens = step.before.tokens.to("cpu", copy=True)  # good until the next step only
        rows = step.names
        live = [line for line, going in enumerate(step.live) if going]
        for line in live:
            begin, end = self.spans[rows[line]]
            self.canvases[rows[line]].append(tokens[line, begin:end])
        view, decision = step.view, step.decision
        if decision.time is not None:
            times = decision.time.tolist()
            for line in live:
                self.times[rows[line]].append(times[line])
        now, before = (view.sampled, view.confidence), (view.tokens, view.token_probability)
        for kind, mask, (token, probability) in (
            ("commits", decision.commit, now),
            ("remasks", decision.remask, before),
            ("edits", decision.edit, now),
        ):
            if mask is None:
                continue
            for line, change in listed(step.number, mask, view.positions, token, probability):
                row = rows[line]
                made = change._replace(position=change.position - self.spans[row][0])
                self.changes[row][kind].append(made)

    def trajectories(self) -> list[Trajectory]:
        """One for each row."""
        return [
            Trajectory(torch.stack(seen), times=times, **changes)
            for seen, changes, times in zip(self.canvases, self.changes, self.times, strict=True)
        ]


def listed(
    number: int, mask: Tensor, positions: Tensor, token: Tensor, probability: Tensor | None
) -> list[tuple[int, Change]]:
    """The line of each marked position with what changed there, in row order."""
    line, column = mask.nonzero(as_tuple=True)
    chance = (
        torch.full(mask.shape, torch.nan, device=mask.device)
        if probability is None
        else probability
    )
    columns = (line, *(x[line, column] for x in (positions, token, chance)))
    return [
        (i, Change(number, p, t, c))
        for i, p, t, c in zip(*(x.tolist() for x in columns), strict=True)
    ]
