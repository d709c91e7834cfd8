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
    confidence: float  # p(token) under the untempered model; NaN where it was not measured


@dataclass(slots=True)
class Trajectory:
    """The forwards of one row."""

    canvases: Tensor  # int64 [forwards, G], the generated span as each forward saw it
    commits: list[Change] = field(default_factory=list)
    remasks: list[Change] = field(default_factory=list)
    edits: list[Change] = field(default_factory=list)


def collect(steps: list[Step], spans: list[tuple[int, int]]) -> list[Trajectory]:
    """The trajectory of each row of a finished generation.

    Args:
        steps: every forward, in order.
        spans: first position of the generated span of each row, and one past its last.
    """
    canvases: list[list[Tensor]] = [[] for _ in spans]
    out = [Trajectory(torch.empty(0)) for _ in spans]
    for step in steps:
        tokens = step.before.tokens.cpu()
        rows = step.before.row.tolist()
        for line, row in enumerate(rows):
            begin, end = spans[row]
            canvases[row].append(tokens[line, begin:end])
        view, decision = step.view, step.decision
        masks = (decision.commit, decision.remask, decision.edit)
        for kind, mask in zip(("commits", "remasks", "edits"), masks, strict=True):
            if mask is None:
                continue
            token = view.tokens if kind == "remasks" else view.sampled
            probability = view.token_probability if kind == "remasks" else view.confidence
            for line, change in listed(step.number, mask, view.positions, token, probability):
                row = rows[line]
                made = change._replace(position=change.position - spans[row][0])
                getattr(out[row], kind).append(made)
    for trajectory, seen in zip(out, canvases, strict=True):
        trajectory.canvases = torch.stack(seen)
    return out


def listed(
    number: int, mask: Tensor, positions: Tensor, token: Tensor, probability: Tensor | None
) -> list[tuple[int, Change]]:
    """The line of each marked position with what changed there, in row order."""
    line, column = mask.nonzero(as_tuple=True)
    chance = torch.full(mask.shape, torch.nan) if probability is None else probability
    columns = (line, *(x[line, column] for x in (positions, token, chance)))
    return [
        (i, Change(number, p, t, c))
        for i, p, t, c in zip(*(x.tolist() for x in columns), strict=True)
    ]
