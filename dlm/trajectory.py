"""What happened at each forward, row by row.

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

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """Of each token, ln of the confidence that it was written with, nats.

        By the forward that committed or edited it last; -inf where that confidence was 0.

        Args:
            tokens: the generated span at the end.

        Returns:
            One for each; NaN for tokens that no forward wrote: those that were given, and those
            that were filled in behind a stop token or text.
        """
        last = {change.position: change for change in sorted([*self.commits, *self.edits])}
        return [log_probability(last.get(at), token) for at, token in enumerate(tokens)]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a row so far."""

    canvases: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    changes: dict[str, list[Change]] = field(
        default_factory=lambda: {"commits": [], "remasks": [], "edits": []}
    )


class Recorder:
    """Collects the forwards of a generation as they are made."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        """Take the first position of the generated span of each row, and one past its last."""
        self.spans = spans
        self.rows: defaultdict[int, Kept] = defaultdict(Kept)  # by name

    def add(self, step: Step) -> None:
        """Keep what a forward saw and changed."""
        tokens = step.before.tokens.to("cpu", copy=True)  # good until the next step only
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
        """That of a row after its last forward, of which no more is kept then."""
        kept = self.rows.pop(row)
        return Trajectory(torch.stack(kept.canvases), times=kept.times, **kept.changes)


def mark(order: Tensor, step: Step) -> None:
    """Write which of a row's forwards committed or edited a token, int64 [B, L] of all rows.

    -1 where the token that it wrote was taken back, or filled over behind a stop token.
    """
    tokens, width = step.tokens, step.tokens.shape[1]
    inside, column = covered(step.view.positions, width)
    taken, edit = step.decision.commit, step.decision.edit
    taken = inside & (taken if edit is None else taken | edit).gather(1, column)
    stands = taken & (step.view.sampled.gather(1, column) == tokens)
    lost = taken | (tokens != step.before.tokens)  # unless it stands
    # Lines that are not live may be copies of others, and a row is written once.
    lines = send([line for line, live in enumerate(step.live) if live], order.device)
    row, number = step.before.row[lines], step.forwards[lines, None] - 1
    before = order[row, :width].masked_fill(lost[lines], -1)
    order[row, :width] = torch.where(stands[lines], number, before)


def standing(order: Sequence[int], tokens: Sequence[int], now: Sequence[int]) -> list[int]:
    """The order of tokens once others may have taken their places: -1 there."""
    places = zip(order, tokens, now, strict=True)
    return [number if token == left else -1 for number, token, left in places]


Likeliest = list[tuple[int, float]]
"""Token ids with ln of their probabilities, nats, the likeliest first; none of probability 0."""


class Written:
    """How each position of some rows was written last, as their forwards are made.

    Args:
        top: how many of the likeliest tokens to keep of each, where steps list them.
    """

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self.rows: dict[int, dict[int, Change]] = {}  # by name, and by position on the canvas
        self.likeliest: dict[int, dict[int, Likeliest]] = {}  # likewise

    def add(self, step: Step, names: Collection[int]) -> None:
        """Note what a forward wrote in rows of these names; waits for the device if there are."""
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
        """As those of a trajectory, of tokens that stand from `begin` on."""
        last = self.rows.get(name, {})
        return [log_probability(last.get(at), token) for at, token in enumerate(tokens, begin)]

    def top_tokens(self, name: int, begin: int, tokens: Sequence[int]) -> list[Likeliest]:
        """Of tokens that stand from `begin` on, the likeliest when they were written.

        None of one that no forward wrote.
        """
        last, tops = self.rows.get(name, {}), self.likeliest.get(name, {})
        places = enumerate(tokens, begin)
        return [tops[at] if wrote(last.get(at), token) else [] for at, token in places]

    def forget(self, name: int) -> None:
        """Keep no more of a row."""
        self.rows.pop(name, None)
        self.likeliest.pop(name, None)


def likeliest(view: StepView, index: Tensor, mask: Tensor) -> list[Likeliest]:
    """What a view lists at the marked positions of some lines, int64 [n] and bool [n, W]."""
    tokens, p = (view.want(name)[index][mask] for name in ("top_tokens", "top_probabilities"))
    pairs = zip(tokens.tolist(), p.tolist(), strict=True)
    return [[(t, math.log(c)) for t, c in zip(*pair, strict=True) if c > 0] for pair in pairs]


def wrote(written: Change | None, token: int) -> bool:
    """Whether a change is there, and wrote this token."""
    return written is not None and written.token == token


def log_probability(written: Change | None, token: int) -> float:
    """That of a change that wrote a token, by its confidence; NaN where none wrote this one."""
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
    """The line of each marked position with what changed there, in row order.

    At the last of so many forwards that are made of each line.
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
