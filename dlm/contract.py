"""What every decision must respect, checked once for all decoders.

Shapes: B rows, W window.
"""

from enum import Enum

import torch
from torch import Tensor

from dlm.types import AnyDecoder, Decision, StepView, may_mutate


class Violation(Enum):
    """The rules, as the end of an error message."""

    COMMIT = "committed a position that is not masked"
    CHANGE = "remasked or edited a position that is given, still masked or outside the block"
    PROGRESS = "made no net progress in a row that still has masks in its block"
    NAN = "the network returned NaN or infinite logits"


def gain(decision: Decision) -> Tensor:
    """Net commits of each row: commits less remasks, int64 [B]."""
    commits = decision.commit.sum(-1)
    return commits if decision.remask is None else commits - decision.remask.sum(-1)


def violations(decision: Decision, view: StepView, decoder: AnyDecoder) -> dict[Violation, Tensor]:
    """Whether each rule is broken, bool scalars on the device of the view.

    Args:
        decision: what the decoder chose.
        view: what it saw.
        decoder: who chose.

    Raises:
        ValueError: a mask of the decision has the wrong type or shape, or the decoder remasks or
            edits without declaring it.
    """
    name = type(decoder).__name__
    if not isinstance(decision, Decision):
        raise ValueError(f"{name}: step must return (state, Decision), got {decision!r}")
    changes = {"remask": decision.remask, "edit": decision.edit}
    given = {field: mask for field, mask in changes.items() if mask is not None}
    for field, mask in {"commit": decision.commit, **given}.items():
        if not isinstance(mask, Tensor):
            raise ValueError(f"{name}: {field} must be a bool tensor, got {mask!r}")
        if mask.dtype != torch.bool or mask.shape != view.masked.shape:
            raise ValueError(
                f"{name}: {field} must be bool {tuple(view.masked.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
    if given and not may_mutate(decoder):
        raise ValueError(f"{name}: {' and '.join(given)} needs mutates_committed = True")
    foul = torch.zeros((), dtype=torch.bool, device=view.masked.device)
    for mask in given.values():
        foul = foul | (mask & ~view.editable).any()
    return {
        Violation.COMMIT: (decision.commit & ~view.masked).any(),
        Violation.CHANGE: foul,
        Violation.PROGRESS: ((gain(decision) < 1) & view.masked.any(-1)).any(),
    }
