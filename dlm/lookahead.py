"""Speculative branches: the variants of a row that one forward pass evaluates together.

Shapes: B rows, C branches of each, L canvas, W window, K likeliest tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.measure import Measured
from dlm.progress import Guess, Progress, select_rows
from dlm.types import Decision, StepView
from dlm.window import Window


def nothing(window: Window, branches: int, top: int) -> Guess:
    """A guess that tries nothing, so that all branches are equal; lists `top` tokens if any."""
    tokens, (rows, width) = window.tokens, window.tokens.shape
    sure = torch.zeros(tokens.shape, device=tokens.device)
    marks = window.masked.new_zeros((rows, branches, width))
    if not top:
        return Guess(marks, tokens, sure, None, None)
    listed = tokens[..., None].expand(-1, -1, top)
    return Guess(marks, tokens, sure, listed, sure[..., None].expand(-1, -1, top))


def tried(view: StepView, decision: Decision, branches: int) -> Guess:
    """What a decision tries next, with the statistics of the forward pass it rests on.

    Valid for the row's next forward pass, as a block that still has masks is not left.
    """
    marks = decision.lookahead
    if marks is None:
        rows, width = view.masked.shape
        marks = view.masked.new_zeros((rows, branches, width))
    sure = view.confidence
    if sure is None:
        sure = torch.zeros(view.sampled.shape, device=view.sampled.device)
    return Guess(marks, view.sampled, sure, view.top_tokens, view.top_probabilities)


def lines(canvas: Canvas, progress: Progress, guess: Guess) -> tuple[Canvas, Progress]:
    """Lay out every branch as a row of its own, those of one row adjacent: C times as many rows."""
    rows, branches = guess.marks.shape[:2]
    index = torch.arange(rows, device=guess.marks.device).repeat_interleave(branches)
    width = canvas.tokens.shape[1]
    canvas, each = canvas.select(index, width), replace(progress, guess=None).select(index, width)
    marks, sampled, window = guess.marks.flatten(0, 1), guess.sampled[index], each.window
    by = fused_canvas if fused_canvas.covers(canvas.tokens) else plain
    tokens = by.write(canvas.tokens, window.positions, sampled, (marks, None, None), -1)
    window = replace(
        window,
        tokens=torch.where(marks, sampled, window.tokens),
        masked=window.masked & ~marks,
    )
    return replace(canvas, tokens=tokens), replace(each, window=window)


def lines_of(rows: Tensor, branches: int) -> Tensor:
    """Indices of the branches of some rows, int64 [n] to [n C]."""
    return (rows[:, None] * branches + torch.arange(branches, device=rows.device)).flatten()


def line_of(winner: Tensor, branches: int) -> Tensor:
    """Index of the branch that each row chose, int64 [B] both."""
    return torch.arange(winner.shape[0], device=winner.device) * branches + winner


def chosen(seen: Measured, winner: Tensor, guess: Guess) -> Measured:
    """The measurements of the branch that each row chose.

    Queries are summed over branches, except in rows whose branches are equal: those count once, as
    the other branches are computed only for the sake of other rows.
    """
    branches = guess.marks.shape[1]
    index, each = line_of(winner, branches), seen.queries.view(-1, branches)
    queries = torch.where(guess.marks.any(-1).any(-1), each.sum(-1), each[:, 0])
    return replace(seen, view=select_rows(seen.view, index), queries=queries)


def accepted(
    seen: Measured, decision: Decision, guess: Guess, winner: Tensor, window: Window
) -> tuple[Measured, Decision]:
    """Merge the chosen branch into the row: what the branch tried is committed by this pass.

    Args:
        seen: measurements of the chosen branch.
        decision: made on top of that branch.
        guess: what branches tried.
        winner: int64 [B], the chosen branch.
        window: of the row, without any branch.
    """
    taken = guess.marks[torch.arange(winner.shape[0], device=winner.device), winner]
    view = seen.view

    def either(tried: Tensor | None, now: Tensor | None) -> Tensor | None:
        if tried is None or now is None:
            return now
        return torch.where(taken[..., None] if tried.dim() > taken.dim() else taken, tried, now)

    merged = replace(
        view,
        tokens=window.tokens,
        masked=window.masked,
        editable=view.editable & ~taken,
        sampled=torch.where(taken, guess.sampled, view.sampled),
        confidence=either(guess.confidence, view.confidence),
        top_tokens=either(guess.top_tokens, view.top_tokens),
        top_probabilities=either(guess.top_probabilities, view.top_probabilities),
    )
    return replace(seen, view=merged), replace(decision, commit=decision.commit | taken)
