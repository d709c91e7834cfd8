"""One forward pass, and the decoder's decision on it.

Shapes: B rows, C branches of each, W window.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm import lookahead
from dlm.canvas import Canvas
from dlm.contract import Violation, answer, choice, violations
from dlm.measure import Measured, Meter
from dlm.progress import ForwardPlan, Guess, Progress
from dlm.traits import Traits
from dlm.tree import mapped
from dlm.types import AnyDecoder, Decision, StepView


@dataclass(frozen=True, slots=True)
class Decided:
    """The result of one forward pass and its decision, before anything is written."""

    state: Any  # of the decoder
    seen: Measured
    decision: Decision
    broken: dict[Violation, Tensor]  # which rules the decision breaks, bool scalars


class Deciding:
    """Asks a decoder what each forward pass commits."""

    def __init__(self, decoder: AnyDecoder, traits: Traits, meter: Meter) -> None:
        self.decoder = decoder
        self.traits = traits
        self.meter = meter
        # Built-in decoders are known not to write to their views, so these need no copy.
        self.trusted = type(decoder).__module__.partition(".")[0] == "dlm"

    def __call__(self, canvas: Canvas, progress: Progress, plan: ForwardPlan) -> Decided:
        """Run the forward pass and decide; decide first if the decision depends on no logits."""
        if progress.guess is not None:
            return self.ahead(canvas, progress, plan, progress.guess)
        view = self.meter.look(canvas, progress)
        if not self.traits.order_only:
            seen = self.meter.measure(canvas, progress, plan, view, self.meter.wanted(view))
            state, decision, broken = self.asked(seen.state, seen.view)
            return Decided(state, seen, decision, {**broken, Violation.NAN: ~seen.finite})
        state, decision, broken = self.asked(progress.state, view)
        taken = decision.commit if decision.edit is None else decision.commit | decision.edit
        if self.meter.joint is not None:  # the joint distribution depends on all open positions
            taken = taken | view.masked
        seen = self.meter.measure(canvas, progress, plan, view, taken)
        return Decided(state, seen, decision, {**broken, Violation.NAN: ~seen.finite})

    def ahead(self, canvas: Canvas, progress: Progress, plan: ForwardPlan, guess: Guess) -> Decided:
        """Evaluate every branch, choose one for each row, and decide on that one."""
        seen, winner, broken = self.branch(canvas, progress, plan, guess)
        view = self.meter.with_branch_noise(seen.view, canvas, progress.made)
        state, decision, foul = self.asked(progress.state, view)
        seen, decision = lookahead.accepted(seen, decision, guess, winner, progress.window)
        if Violation.PROGRESS in foul and not plan.alike:  # the branch's tokens count as progress
            whole = violations(decision, seen.view, self.traits)
            foul[Violation.PROGRESS] = whole[Violation.PROGRESS]
        return Decided(state, seen, decision, broken | foul)

    def branch(
        self, canvas: Canvas, progress: Progress, plan: ForwardPlan, guess: Guess
    ) -> tuple[Measured, Tensor, dict[Violation, Tensor]]:
        """Measure the chosen branch of each row.

        Returns:
            Its measurements, its index in each row, int64 [B], and which rules are broken.
        """
        rows, count = canvas.tokens.shape[0], self.traits.branches
        winner, absent = torch.zeros_like(progress.made), torch.zeros_like(progress.done[0])
        if plan.alike:
            view = self.meter.look(canvas, progress)
            seen = self.meter.measure(canvas, progress, plan, view, self.meter.wanted(view))
            finite = seen.finite
        else:
            lines, stand = lookahead.lines(canvas, progress, guess)
            view = self.meter.look(lines, stand)
            wanted = self.meter.wanted(view)
            every = self.meter.measure(lines, stand, plan.lines(count), view, wanted)
            shown = mapped(lambda part: part.unflatten(0, (rows, count)), self.shown(every.view))
            assert self.traits.choose is not None
            made = self.traits.choose(progress.state, shown)
            winner, absent = choice(made, rows, self.traits)
            seen, finite = lookahead.chosen(every, winner, guess), every.finite
        self.meter.forward.settle(lookahead.line_of(winner, count), plan)
        return seen, winner, {Violation.NAN: ~finite, Violation.CHOICE: absent}

    def asked(self, state: Any, view: StepView) -> tuple[Any, Decision, dict[Violation, Tensor]]:
        """The decoder's state and decision, and which rules the decision breaks."""
        state, decision = answer(self.decoder.step(state, self.shown(view)), view, self.traits)
        return state, decision, violations(decision, view, self.traits)

    def shown(self, view: StepView) -> StepView:
        """The view as the decoder gets it: with its own top tokens, copied if untrusted."""
        view = view.listing(self.meter.own_top)
        return view if self.trusted else view.apart()
