"""Finds the rows that broke a rule, once one is broken: steps that succeed pay nothing for it.

Shapes: B rows, N columns measured.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm.contract import Violation, violations
from dlm.places import Places
from dlm.progress import select_rows
from dlm.traits import Traits

if TYPE_CHECKING:
    from dlm.runtime import Outcome


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest logit at each measured column, finite exactly where all logits are."""

    maximum: Tensor  # float32 [N]
    places: Places  # of the columns

    @property
    def finite(self) -> Tensor:
        """Whether the logits of each column are finite, bool [N]."""
        return self.maximum.abs() < torch.inf  # one kernel; `isfinite` launches four

    def broken(self) -> list[int]:
        """Rows with a column that is not finite, ascending; waits for the device."""
        bad, ignored = ~self.finite, self.places.ignored
        bad = bad if ignored is None else bad & ~ignored.flatten()
        found: list[int] = self.places.row[bad].unique().tolist()
        return found


def culprits(rule: Violation, outcome: "Outcome", traits: Traits, lines: int) -> list[int]:
    """Rows of a step that broke a rule, ascending; empty if no single row is to blame.

    Args:
        rule: a rule that the step broke.
        outcome: of the step, whose memory must not have been reused yet.
        traits: what the decoder declares.
        lines: branches of a row that were evaluated.
    """
    if rule is Violation.NAN:
        return sorted({line // lines for line in outcome.peaks.broken()})
    if rule is Violation.BOUND:
        going = outcome.progress
        over = (going.bound <= going.made) & ~going.done
        return [row for row, is_over in enumerate(over.tolist()) if is_over]
    return [row for row in range(len(outcome.progress.done)) if alone(rule, outcome, traits, row)]


def alone(rule: Violation, outcome: "Outcome", traits: Traits, row: int) -> bool:
    """Whether the decision for one row breaks a rule by itself."""
    index = torch.tensor([row], device=outcome.progress.done.device)
    decision, view = select_rows(outcome.decision, index), select_rows(outcome.view, index)
    found = violations(decision, view, traits).get(rule)
    return found is not None and bool(found)
