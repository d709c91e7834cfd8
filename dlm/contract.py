"""What every decision must respect, checked once for all decoders.

Shapes: B rows, W window.
"""

from enum import Enum

import torch
from torch import Tensor

from dlm.traits import Traits
from dlm.types import Decision, StepView


class Violation(Enum):
    """The rules, as the end of an error message."""

    COMMIT = "committed a position that is not masked"
    CHANGE = "remasked or edited a position that is given, still masked or outside the block"
    PROGRESS = "made no net progress in a row that still has masks in its block"
    BOUND = "kept decoding a row beyond the forwards it declares in max_forwards"
    NAN = "the network returned NaN or infinite logits"


def gain(decision: Decision) -> Tensor:
    """Net commits of each row: commits less remasks, int64 [B]."""
    commits = decision.commit.sum(-1)
    return commits if decision.remask is None else commits - decision.remask.sum(-1)


def rules(traits: Traits) -> tuple[Violation, ...]:
    """Those that `violations` tells of."""
    bounded = () if traits.max_forwards is not None else (Violation.PROGRESS,)
    return (Violation.COMMIT, Violation.CHANGE, *bounded)


def violations(decision: Decision, view: StepView, traits: Traits) -> dict[Violation, Tensor]:
    """Whether each rule is broken, bool scalars on the device of the view.

    Args:
        decision: what the decoder chose.
        view: what it saw.
        traits: what the decoder declares.

    Raises:
        ValueError: a mask of the decision has the wrong type or shape, or the decoder remasks or
            edits without declaring it.
    """
    name = traits.name
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
    if given and not traits.mutates_committed:
        raise ValueError(f"{name}: {' and '.join(given)} needs mutates_committed = True")
    batch = view.masked.shape[:1]
    check_row("hold", decision.hold, torch.bool, batch, name)
    check_row("time", decision.time, torch.float32, batch, name)
    if decision.hold is not None and traits.max_forwards is None:
        raise ValueError(f"{name}: hold needs max_forwards, which bounds it")
    foul = torch.zeros((), dtype=torch.bool, device=view.masked.device)
    for mask in given.values():
        foul = foul | (mask & ~view.editable).any()
    broken = {
        Violation.COMMIT: (decision.commit & ~view.masked).any(),
        Violation.CHANGE: foul,
    }
    if traits.max_forwards is None:
        broken[Violation.PROGRESS] = ((gain(decision) < 1) & view.masked.any(-1)).any()
    return broken


def check_row(field: str, value: object, dtype: torch.dtype, shape: torch.Size, owner: str) -> None:
    """Refuse a part of a decision that is there and not one value a row.

    Raises:
        ValueError: naming the decoder, the field and what was found.
    """
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{owner}: {field} must be {dtype} of shape {list(shape)}, got {found}")
