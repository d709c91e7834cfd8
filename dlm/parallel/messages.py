"""Messages from the leader of a split model, which make the other processes do what it does."""

import io
import pickle
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from dlm.batch import Change, Rows, Terms
from dlm.runtime import Step


@dataclass(frozen=True, slots=True)
class Place:
    """The first message: the rank of a process, and what to load."""

    rank: int
    size: int  # number of processes
    port: int  # of the leader, where the processes meet
    device: str
    facts: dict[str, Any]  # options of `dlm.load`


@dataclass(frozen=True, slots=True)
class Begin:
    """A generation starts with its first forward pass."""

    number: int  # of the generation
    packed: bytes  # the facts of its model, its terms without the model, and its rows
    cache: int | None  # number of its prompt cache
    caches: dict[int, float] = field(default_factory=dict)  # all prompt caches: number -> GiB


@dataclass(frozen=True, slots=True)
class Go:
    """A generation makes another forward pass."""

    number: int
    leave: frozenset[int]
    join: bytes | None  # rows
    seen: int  # digest of the last forward pass, from `seen`

    @classmethod
    def on(cls, number: int, change: Change, step: Step) -> Self:
        """The message after a step, with the rows that leave and join the batch."""
        join = None if change.join is None else pack(change.join)
        return cls(number, change.leave, join, seen(step))

    def change(self, device: torch.device) -> Change:
        """The rows that leave and join the batch, on a device."""
        return Change(self.leave, None if self.join is None else unpack(self.join, device))


@dataclass(frozen=True, slots=True)
class End:
    """A generation makes no more forward passes."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the model is called; only the leader uses its result."""

    method: str
    packed: bytes  # the facts of the model, and the arguments


Message = Begin | Go | End | Call


def seen(step: Step) -> int:
    """A digest of what must be equal in all processes: tokens, and which rows are done."""
    tokens = step.tokens.flatten()
    places = torch.arange(1, len(tokens) + 1, device=tokens.device)
    told = int((tokens * places).sum())  # waits for the device a second time
    return hash((told, tuple(step.done), tuple(step.made), tuple(step.reused)))


def pack(value: Any) -> bytes:
    """Serialise a value with its tensors.

    Raises:
        ValueError: it cannot be pickled.
    """
    held = io.BytesIO()
    try:
        torch.save(value, held)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"decoder must be such that it can be pickled for a model that is cut: {error}"
        ) from error
    return held.getvalue()


def unpack(data: bytes, device: torch.device) -> Any:
    """Restore a value with its tensors on a device; only for data of this process's parent."""
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)


def pack_terms(terms: Terms, rows: Rows) -> bytes:
    """Serialise what a generation starts with: the model's facts, the terms and the rows.

    Raises:
        ValueError: other processes cannot import the decoder, or it cannot be pickled.
    """
    if type(terms.decoder).__module__ == "__main__":
        raise ValueError(
            "decoder must be of a module that other processes can import for a model that is cut, "
            f"got {type(terms.decoder).__name__} of the script itself"
        )
    return pack((terms.model.spec, replace(terms, model=None), rows))  # type: ignore[arg-type]
