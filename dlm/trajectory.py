"""Records of what happened at each forward pass, row by row.

Shapes: B rows, L canvas, W window, G generated span.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.host import send
from dlm.kernels.canvas import covered
from dlm.runtime import Step
from dlm.types import StepView


class Change(NamedTuple):
    """One position that a forward pass committed, remasked or edited."""

    step: int  # forward pass, from 0
    position: int  # index into the generated span
    token: int  # the token afterwards; for a remask, the one before
    confidence: float  # p(token) by the decoder's scoring distribution; NaN if not measured


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The forward passes of one row."""

    canvases: Tensor  # int64 [forwards, G], the generated span as each forward pass saw it
    commits: list[Change]
    remasks: list[Change]
    edits: list[Change]
    times: list[float] = field(default_factory=list)
    """Diffusion time after each forward pass, from 1 to 0; empty if the decoder has no clock."""

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """For each token, ln of the confidence that it was written with, nats.

        Taken from the forward pass that last committed or edited it; -inf if that confidence was 0.

        Args:
            tokens: the generated span at the end.

        Returns:
            One value per token; NaN for tokens that no forward pass wrote: given ones, and those
            filled in after a stop token or text.
        """
        last = {change.position: change for change in sorted([*self.commits, *self.edits])}
        return [log_probability(last.get(at), token) for at, token in enumerate(tokens)]


@dataclass(frozen=True, slots=True)
class Kept:
    """The record of a row so far."""

    canvases: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    changes: dict[str, list[Change]] = field(
        default_factory=lambda: {"commits": [], "remasks": [], "edits": []}
    )


class Recorder:
    """Collects the forward passes of a generation as they are made."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        """Take each row's generated span: its first position, and one past its last."""
        self.spans = spans
        self.rows: defaultdict[int, Kept] = defaultdict(Kept)  # by name

    def add(self, step: Step) -> None:
        """Record what a forward pass saw and changed."""
        tokens = step.before.tokens.to("cpu", copy=True)  # valid only until the next step
        rows = step.names
        live = [line for line, going in enumerate(step.live) if going]
        for line in live:
            begin, end = self.spans[rows[line]]
            self.rows[rows[line]].canvases.append(tokens[line, begin:end].clone())
        view, decision = step.view, step.decision
        if decision.time is not None:
            times = decision.time.tolist()
            for line in live:
                self.rows[rows[line]].times.append(times[line])
        now, before = (view.sampled, view.confidence), (view.tokens, view.token_probability)
        for kind, mask, (token, probability) in (
            ("commits", decision.commit, now),
            ("remasks", decision.remask, before),
            ("edits", decision.edit, now),
        ):
            if mask is None:
                continue
            for line, change in listed(step.made, mask, view.positions, token, probability):
                row = rows[line]
                made = change._replace(position=change.position - self.spans[row][0])
                self.rows[row].changes[kind].append(made)

    def trajectory(self, row: int) -> Trajectory:
        """The trajectory of a finished row; drops its record."""
        kept = self.rows.pop(row)
        return Trajectory(torch.stack(kept.canvases), times=kept.times, **kept.changes)


def mark(order: Tensor, step: Step) -> None:
    """Write to `order`, int64 [B, L] of all rows, which forward pass wrote each token.

    -1 where the token it wrote was taken back, or overwritten after a stop token.
    """
    tokens, width = step.tokens, step.tokens.shape[1]
    inside, column = covered(step.view.positions, width)
    taken, edit = step.decision.commit, step.decision.edit
    taken = inside & (taken if edit is None else taken | edit).gather(1, column)
    stands = taken & (step.view.sampled.gather(1, column) == tokens)
    lost = taken | (tokens != step.before.tokens)  # unless the token is still there
    # Rows that are not live may be copies of others, and each is written only once.
    lines = send([line for line, live in enumerate(step.live) if live], order.device)
    row, number = step.before.row[lines], step.forwards[lines, None] - 1
    before = order[row, :width].masked_fill(lost[lines], -1)
    order[row, :width] = torch.where(stands[lines], number, before)


def standing(order: Sequence[int], tokens: Sequence[int], now: Sequence[int]) -> list[int]:
    """The order of tokens, with -1 where the token has since been replaced."""
    places = zip(order, tokens, now, strict=True)
    return [number if token == left else -1 for number, token, left in places]


Likeliest = list[tuple[int, float]]
"""Token ids with ln of their probabilities, nats, the most likely first; none of probability 0."""


class Written:
    """Tracks how each position of some rows was last written.

    Args:
        top: how many of the most likely tokens to keep for each, if steps list them.
    """

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self.rows: dict[int, dict[int, Change]] = {}  # by name, and by position on the canvas
        self.likeliest: dict[int, dict[int, Likeliest]] = {}  # likewise

    def add(self, step: Step, names: Collection[int]) -> None:
        """Record what a forward pass wrote in these rows; waits for the device if there are any."""
        rows = enumerate(zip(step.names, step.live, strict=True))
        lines = [line for line, (name, live) in rows if live and name in names]
        if not lines:
            return
        view, decision = step.view, step.decision
        index = send(lines, view.positions.device)
        mask = decision.commit if decision.edit is None else decision.commit | decision.edit
        sure = None if view.confidence is None else view.confidence[index]
        marked = (mask[index], view.positions[index], view.sampled[index], sure)
        changes = listed([step.made[line] for line in lines], *marked)
        for line, change in changes:
            self.rows.setdefault(step.names[lines[line]], {})[change.position] = change
        if self.top:
            tops = likeliest(view.listing(self.top), index, mask[index])
            for (line, change), top in zip(changes, tops, strict=True):
                self.likeliest.setdefault(step.names[lines[line]], {})[change.position] = top

    def log_probabilities(self, name: int, begin: int, tokens: Sequence[int]) -> list[float]:
        """Like those of a trajectory, for the tokens from canvas position `begin` on."""
        last = self.rows.get(name, {})
        return [log_probability(last.get(at), token) for at, token in enumerate(tokens, begin)]

    def top_tokens(self, name: int, begin: int, tokens: Sequence[int]) -> list[Likeliest]:
        """For the tokens from canvas position `begin` on, the most likely ones when written.

        Empty for a token that no forward pass wrote.
        """
        last, tops = self.rows.get(name, {}), self.likeliest.get(name, {})
        places = enumerate(tokens, begin)
        return [tops[at] if wrote(last.get(at), token) else [] for at, token in places]

    def forget(self, name: int) -> None:
        """Drop the record of a row."""
        self.rows.pop(name, None)
        self.likeliest.pop(name, None)


def likeliest(view: StepView, index: Tensor, mask: Tensor) -> list[Likeliest]:
    """The top tokens at the marked positions of rows `index`, int64 [n]; `mask` is bool [n, W]."""
    tokens, p = (view.want(name)[index][mask] for name in ("top_tokens", "top_probabilities"))
    pairs = zip(tokens.tolist(), p.tolist(), strict=True)
    return [[(t, math.log(c)) for t, c in zip(*pair, strict=True) if c > 0] for pair in pairs]


def wrote(written: Change | None, token: int) -> bool:
    """Whether a change exists and wrote this token."""
    return written is not None and written.token == token


def log_probability(written: Change | None, token: int) -> float:
    """The log of a change's confidence, -inf for 0; NaN if the change did not write this token."""
    if written is None or written.token != token:
        return math.nan
    return math.log(written.confidence) if written.confidence != 0 else -math.inf


def listed(
    made: Sequence[int],
    mask: Tensor,
    positions: Tensor,
    token: Tensor,
    probability: Tensor | None,
) -> list[tuple[int, Change]]:
    """The row index of each marked position, with what changed there, in row order.

    `made` counts each row's forward passes; the change belongs to the last one.
    """
    line, column = mask.nonzero(as_tuple=True)
    chance = (
        torch.full(mask.shape, torch.nan, device=mask.device)
        if probability is None
        else probability
    )
    columns = (line, *(x[line, column] for x in (positions, token, chance)))
    return [
        (i, Change(made[i] - 1, p, t, c))
        for i, p, t, c in zip(*(x.tolist() for x in columns), strict=True)
    ]
