"""What generations leave for later ones: loops, their caches and their recordings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.recording import Record, Steps
from dlm.slab import by_dtype
from dlm.tree import equal, mapped

if TYPE_CHECKING:
    from dlm.runtime import Loop


CONSTANTS: Final = (bool, int, float, str, bytes, Path, Enum, type(None), Tensor)
MOST: Final = 32
"""Most workspaces of a lane: even small ones take memory that `Workspace.size` does not count."""
RECORDINGS: Final = 256
"""Most recordings of a lane, over all its workspaces: each takes memory of the driver."""


class Workspace:
    """A loop for canvases of one shape, with the memory that its recordings read."""

    def __init__(self, layout: tuple[Any, ...], loop: "Loop", record: Record | None) -> None:
        self.layout = layout  # all that the loop depends on, except its decoder
        self.loop = loop
        self.steps = Steps(loop.step, record)  # not in the loop: a reference cycle would outlive it
        self.recorded = record is not None
        self.canvas: Canvas | None = None

    def lay(self, canvas: Canvas) -> Canvas:
        """Copy a canvas to where recordings read it."""
        if not self.recorded:
            return canvas
        if self.canvas is None:
            self.canvas = mapped(torch.clone, canvas)
        else:
            for into, of in zip(by_dtype(self.canvas), by_dtype(canvas), strict=True):
                torch._foreach_copy_(into, of)
        return self.canvas

    @property
    def size(self) -> int:
        """Bytes of the loop and its recordings."""
        return self.loop.size + self.steps.size


class Budget:
    """Bytes that the lanes of a network may keep in total."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used: set[Lane] = set()  # by running generations

    def left(self, lane: "Lane") -> int:
        """Bytes left for one lane, after the others in use.

        Iterates over a copy, which no other thread or garbage-collected stream can change.
        """
        others = (each.size for each in self.used.copy() if each is not lane)
        return max(0, self.most - sum(others))


class Lane:
    """Workspaces that one generation at a time may use."""

    def __init__(self, record: Record | None, state: object, budget: Budget) -> None:
        self.record = record
        self.state = state  # of the network; None if nothing may be kept
        self.budget = budget
        self.kept: list[Workspace] = []  # most recently used last

    def workspace(
        self, layout: tuple[Any, ...], decoder: Any, make: Callable[[], "Loop"]
    ) -> Workspace:
        """The kept workspace for this layout and decoder, or a new one."""
        for work in self.kept:
            if work.layout == layout and equal(work.loop.decoder, decoder):
                self.kept.remove(work)
                break
        else:
            work = Workspace(layout, make(), self.record)
        if self.state is not None and constant(decoder):
            self.kept.append(work)
            self.trim()
        return work

    def trim(self) -> None:
        """Drop the least recently used workspaces until the rest fits the limits."""
        left = self.budget.left(self)
        while len(self.kept) > MOST or self.recordings > RECORDINGS or self.size > left:
            del self.kept[0]

    @property
    def size(self) -> int:
        """Bytes of all workspaces."""
        return sum(work.size for work in self.kept)

    @property
    def recordings(self) -> int:
        """Number of recordings."""
        return sum(len(work.steps.recordings) for work in self.kept)


def constant(decoder: Any) -> bool:
    """Whether a decoder behaves the same in every generation, as frozen dataclasses do.

    The contract asks for one. Any other decoder, or one that holds a function or anything mutable,
    may have changed, so its steps are recorded again. Tensors are an exception: recordings read
    their current values.
    """
    if isinstance(decoder, tuple):
        return all(map(constant, decoder))
    if not is_dataclass(decoder) or isinstance(decoder, type):
        return isinstance(decoder, CONSTANTS)
    parameters = vars(type(decoder)).get("__dataclass_params__")  # not inherited ones
    return (
        parameters is not None
        and parameters.frozen
        and all(constant(getattr(decoder, field.name)) for field in fields(decoder))
    )


class Lanes:
    """The lanes of one network."""

    def __init__(
        self, record: Callable[[], Record], most: int, device: torch.device | None = None
    ) -> None:
        """Take a factory of recorders for lanes, the bytes to keep, and the device."""
        self.record = record
        self.device = device
        self.budget = Budget(most)
        self.unused: list[Lane] = []
        self.lock = RLock()  # reentrant: a stream may be collected while it is held
        self.failed = False  # whether a recording failed; it may cost memory, so no retry

    @contextmanager
    def taken(self, state: object) -> Iterator[Lane]:
        """A lane for one generation of the network in this state.

        It is kept afterwards, unless an exception was raised, which leaves its contents undefined.
        """
        with self.lock:
            lane = self.unused.pop() if self.unused else Lane(self.record(), state, self.budget)
            if lane.state != state:
                self.unused.clear()
                lane = Lane(self.record(), state, self.budget)
        assert lane.record is not None
        lane.record.begin()
        self.budget.used.add(lane)
        try:
            yield lane
        except GeneratorExit:  # a stream that was closed early
            self.give(lane)
            raise
        except BaseException:
            with self.lock:
                self.unused.clear()
            self.budget.used.discard(lane)
            with suppress(RuntimeError):  # of a device that no longer works
                lane.record.end()
            raise
        self.give(lane)

    def shed(self, used: Sequence[tuple[Lane, Workspace]]) -> None:
        """Drop everything that is not in use, and the recordings of what is."""
        with self.lock:
            self.unused.clear()
        works = [work for _, work in used]
        for lane, work in used:
            lane.kept = [each for each in lane.kept if each in works]
            work.steps.forget()
            assert lane.record is not None
            lane.record.free()

    def give(self, lane: Lane) -> None:
        """Keep a lane for the next generation."""
        assert lane.record is not None
        self.budget.used.discard(lane)
        lane.record.end()
        with self.lock:
            self.failed = self.failed or lane.record.failed
            if self.failed:
                self.unused.clear()
            elif lane.state is not None:
                lane.trim()
                self.unused.append(lane)
                while sum(each.size for each in self.unused) > self.budget.left(lane):
                    del self.unused[0]
