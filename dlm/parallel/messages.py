"""What the first process of a cut model tells the others, which do the same as it does."""

import io
import pickle
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from dlm.batch import Change, Rows, Terms
from dlm.runtime import Step


@dataclass(frozen=True, slots=True)
class Place:
    """Told first: who a process is, and what to load."""

    rank: int
    size: int  # processes
    port: int  # of the first one, where they meet
    device: str
    facts: dict[str, Any]  # options of `dlm.load`


@dataclass(frozen=True, slots=True)
class Begin:
    """A generation begins, with its first forward."""

    number: int  # of the generation
    packed: bytes  # the facts of its model, its terms without the model, and its rows
    cache: int | None  # which prompt cache it has
    caches: dict[int, float] = field(default_factory=dict)  # all there are, by number, GiB


@dataclass(frozen=True, slots=True)
class Go:
    """A generation makes another forward."""

    number: int
    leave: frozenset[int]
    join: bytes | None  # rows
    seen: int  # what the last forward gave, in short

    @classmethod
    def on(cls, number: int, change: Change, step: Step) -> Self:
        """After a step, and what happens to the batch then."""
        join = None if change.join is None else pack(change.join)
        return cls(number, change.leave, join, seen(step))

    def change(self, device: torch.device) -> Change:
        """What happens to the batch."""
        return Change(self.leave, None if self.join is None else unpack(self.join, device))


@dataclass(frozen=True, slots=True)
class End:
    """A generation makes no more forwards."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the model is called, whose result the first process alone looks at."""

    method: str
    packed: bytes  # the facts of the model, and the arguments


Message = Begin | Go | End | Call


def seen(step: Step) -> int:
    """What all processes must have come to alike: tokens, and which rows are done."""
    tokens = step.tokens.flatten()
    places = torch.arange(1, len(tokens) + 1, device=tokens.device)
    told = int((tokens * places).sum())  # waits for the device once more
    return hash((told, tuple(step.done), tuple(step.made), tuple(step.reused)))


def pack(value: Any) -> bytes:
    """Any value, with its tensors.

    Raises:
        ValueError: pickle does not take it.
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
    """The value, with its tensors on a device. It came from the process that started this one."""
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)


def pack_terms(terms: Terms, rows: Rows) -> bytes:
    """What a generation begins with.

    Raises:
        ValueError: other processes cannot import its decoder.
    """
    if type(terms.decoder).__module__ == "__main__":
        raise ValueError(
            "decoder must be of a module that other processes can import for a model that is cut, "
            f"got {type(terms.decoder).__name__} of the script itself"
        )
    return pack((terms.model.spec, replace(terms, model=None), rows))  # type: ignore[arg-type]
