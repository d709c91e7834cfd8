"""The rules that every decision must obey, checked once for all decoders.

Shapes: B rows, W window, C branches.
"""

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from dlm.kernels import canvas as plain
from dlm.kernels import fused_canvas
from dlm.traits import Traits
from dlm.types import Decision, StepView


class Violation(Enum):
    """The rules; each value completes an error message."""

    COMMIT = "committed a position that is not masked"
    CHANGE = "remasked or edited a position that is given, still masked or outside the block"
    PROGRESS = "made no net progress in a row that still has masks in its block"
    LOOKAHEAD = "looked ahead at a position that is not masked, or that it committed"
    CHOICE = "chose a branch that is not there"
    BOUND = "kept decoding a row beyond the forwards it declares in max_forwards"
    NAN = "the network returned NaN or infinite logits"


def gain(decision: Decision) -> Tensor:
    """Net commits of each row: commits minus remasks, int64 [B]."""
    return plain.gain(decision.commit, decision.remask)


def rules(traits: Traits) -> tuple[Violation, ...]:
    """The rules that a decoder can break at any forward pass."""
    branched = (Violation.LOOKAHEAD, Violation.CHOICE) if traits.branches > 1 else ()
    return (*judged(traits), *branched)


def judged(traits: Traits) -> tuple[Violation, ...]:
    """The rules for the changes of a decision."""
    bounded = () if traits.max_forwards is not None else (Violation.PROGRESS,)
    return (Violation.COMMIT, Violation.CHANGE, *bounded)


def answer(made: object, view: StepView, traits: Traits) -> tuple[Any, Decision]:
    """Validate what `step` returned: the decoder's state and its decision.

    Args:
        made: the return value.
        view: what the decoder saw.
        traits: what the decoder declares.

    Raises:
        ValueError: it is no such pair, or rows of the state cannot be moved.
    """
    name = traits.name
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], Decision):
        raise ValueError(f"{name}: step must return (state, Decision), got {made!r}")
    check_state(made[0], view.masked.shape[0], name)
    return made


def opening(made: object, view: StepView, traits: Traits) -> tuple[Any, Tensor]:
    """Validate what `open` returned: the decoder's state and the open columns.

    Args:
        made: the return value.
        view: what the decoder saw.
        traits: what the decoder declares.

    Raises:
        ValueError: it is no such pair, or rows of the state cannot be moved.
    """
    name, batch = traits.name, view.masked.shape[0]
    state, columns = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    kind = (columns.dtype, columns.shape) if isinstance(columns, Tensor) else None
    if columns is None or kind != (torch.int64, (batch,)):
        raise ValueError(f"{name}: open must return (state, int64 [{batch}]), got {made!r}")
    check_state(state, batch, name)
    return state, columns


def choice(made: object, batch: int, traits: Traits) -> tuple[Tensor, Tensor]:
    """Validate the branches that a decoder chose.

    Args:
        made: what `choose` returned.
        batch: B.
        traits: what the decoder declares.

    Returns:
        The branches, int64 [B], clamped to valid ones, and whether any was invalid.

    Raises:
        ValueError: it is not int64 [B].
    """
    if not isinstance(made, Tensor) or made.dtype != torch.int64 or made.shape != (batch,):
        found = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else repr(made)
        raise ValueError(f"{traits.name}: choose must return int64 of shape [{batch}], got {found}")
    there = made.clamp(0, traits.branches - 1)
    return there, (there != made).any()


def check_state(state: object, rows: int, name: str) -> None:
    """Reject a decoder state whose rows cannot be dropped, added and reordered.

    Raises:
        ValueError: it holds anything but tensors with a leading axis of `rows`, None, and tuples
            and frozen dataclasses of those.
    """
    if isinstance(state, Tensor):
        if state.shape[:1] != (rows,):
            raise ValueError(
                f"{name}: state must hold tensors with a leading axis of {rows}, one for each row, "
                f"got {state.dtype} {list(state.shape)}"
            )
        return
    parts = parts_of(state)
    if parts is None:
        raise ValueError(
            f"{name}: state must be None, a tensor, or a tuple or frozen dataclass of those, "
            f"got {state!r}"
        )
    for part in parts:
        check_state(part, rows, name)


def parts_of(state: object) -> tuple[Any, ...] | None:
    """The parts of a state, as `dlm.tree` traverses it; None if it cannot."""
    if state is None:
        return ()
    if isinstance(state, tuple):
        return state
    if not is_dataclass(state) or isinstance(state, type):
        return None
    # Selecting rows rebuilds it; if it were not frozen, it could change after being recorded.
    parameters, held = type(state).__dataclass_params__, fields(state)  # type: ignore[attr-defined]
    made = parameters.frozen and parameters.init and all(field.init for field in held)
    return tuple(getattr(state, field.name) for field in held) if made else None


def violations(decision: Decision, view: StepView, traits: Traits) -> dict[Violation, Tensor]:
    """Whether the decision breaks each rule, bool scalars on the device of the view.

    Args:
        decision: what the decoder chose.
        view: what it saw.
        traits: what the decoder declares.

    Raises:
        ValueError: a mask of the decision has the wrong dtype or shape, or the decoder remasks or
            edits without declaring it.
    """
    name = traits.name
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
    told = judged(traits)
    by = fused_canvas if fused_canvas.covers(view.masked, view.masked.shape[1]) else plain
    advances = Violation.PROGRESS in told
    broken = by.judge(decision.changes, view.masked, view.editable, advances)
    made = dict(zip(told, broken, strict=True))
    if decision.lookahead is not None:
        made[Violation.LOOKAHEAD] = strayed(decision.lookahead, decision.commit, view, traits)
    elif traits.branches > 1:
        made[Violation.LOOKAHEAD] = torch.zeros_like(broken[0])
    return made


def strayed(lookahead: object, commit: Tensor, view: StepView, traits: Traits) -> Tensor:
    """Whether a branch would fill a position that is not open after the decision, a bool scalar.

    Raises:
        ValueError: `lookahead` is not bool [B, C, W], or the decoder declares no branches.
    """
    name, (batch, width) = traits.name, view.masked.shape
    if traits.branches == 1:
        raise ValueError(f"{name}: lookahead needs branches above 1")
    shape = (batch, traits.branches, width)
    if not isinstance(lookahead, Tensor) or lookahead.dtype != torch.bool:
        raise ValueError(f"{name}: lookahead must be a bool tensor, got {lookahead!r}")
    if lookahead.shape != shape:
        raise ValueError(f"{name}: lookahead must be {list(shape)}, got {list(lookahead.shape)}")
    return (lookahead & ~(view.masked & ~commit)[:, None]).any()


def check_row(field: str, value: object, dtype: torch.dtype, shape: torch.Size, owner: str) -> None:
    """Reject an optional field of a decision that does not hold one value per row.

    Raises:
        ValueError: names the decoder, the field and what was found.
    """
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{owner}: {field} must be {dtype} of shape {list(shape)}, got {found}")
