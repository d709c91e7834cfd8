"""What every decision must respect, checked once for all decoders.

Shapes: B rows, W window.
"""

from enum import Enum

import torch
from torch import Tensor

from dlm.types import AnyDecoder, Decision, StepView


class Violation(Enum):
    """The rules, as the end of an error message."""

    COMMIT = "committed a position that is not masked"
    CHANGE = "remasked or edited a position that is given, still masked or outside the block"
    PROGRESS = "made no net progress in a row that still has masks in its block"
    NAN = "the network returned NaN or infinite logits"


def violations(
    decision: Decision, view: StepView, editable: Tensor, decoder: AnyDecoder
) -> dict[Violation, Tensor]:
    """Whether each rule is broken, bool scalars on the device of the view.

    Args:
        decision: what the decoder chose.
        view: what it saw.
        editable: bool [B, W], blanks of the block, committed or not.
        decoder: who chose.

    Raises:
        ValueError: a mask of the decision has the wrong type or shape, or the decoder remasks or
            edits without declaring it.
    """
    name = type(decoder).__name__
    changes = {"remask": decision.remask, "edit": decision.edit}
    given = {field: mask for field, mask in changes.items() if mask is not None}
    for field, mask in {"commit": decision.commit, **given}.items():
        if mask.dtype != torch.bool or mask.shape != view.masked.shape:
            raise ValueError(
                f"{name}: {field} must be bool {tuple(view.masked.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
    if given and not decoder.mutates_committed:
        raise ValueError(f"{name}: {' and '.join(given)} needs mutates_committed = True")
    gain = decision.commit.sum(-1)
    foul = torch.zeros((), dtype=torch.bool, device=gain.device)
    for mask in given.values():
        foul = foul | (mask & (view.masked | ~editable)).any()
    if decision.remask is not None:
        gain = gain - decision.remask.sum(-1)
    measured = (view.confidence, view.margin, view.entropy, view.token_probability)
    nan = torch.zeros_like(foul)
    for statistic in measured:
        if statistic is not None:
            nan = nan | statistic.isnan().any()
    return {
        Violation.NAN: nan,
        Violation.COMMIT: (decision.commit & ~view.masked).any(),
        Violation.CHANGE: foul,
        Violation.PROGRESS: ((gain < 1) & view.masked.any(-1)).any(),
    }
