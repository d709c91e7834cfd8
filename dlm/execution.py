"""How steps are run: one kernel at a time, or recorded once and played again."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.models.model import Model
from dlm.progress import Due, Progress
from dlm.tree import mapped, tensors

if TYPE_CHECKING:
    from dlm.runtime import Outcome

StepFunction = Callable[[Canvas, Progress, Due], "Outcome"]
Play = Callable[[Canvas, Progress], "Outcome"]
Record = Callable[[StepFunction, Canvas, Progress, Due], Play]


@dataclass(frozen=True, slots=True)
class Execution:
    """What suits a device."""

    static: bool = False
    """Whether shapes stay as they are from step to step: every column of the window is measured
    rather than a list of those that are wanted, and a row that is done stays, changing nothing,
    until half of the rows are. Both save what only the host can decide, at the cost of work that
    a GPU hardly notices."""

    record: Record | None = None  # makes a step that can be played again; None for no recording

    @classmethod
    def of(cls, model: Model) -> "Execution":
        """Steps recorded as CUDA graphs where all of the network is on one GPU; else plain ones.

        A subclass of `Model` is not recorded: what it does at its calls would be done once.
        """
        if model.device.type != "cuda":
            return cls()
        devices = {weight.device for weight in model.network.parameters()}
        whole = len(devices) == 1 and type(model) is Model
        return cls(static=True, record=CudaGraph if whole else None)

    def leaves(self, live: Sequence[bool]) -> bool:
        """Whether rows that are done leave the batch now."""
        going = sum(live)
        return going <= len(live) // 2 if self.static else going < len(live)

    def bucket(self, count: int, most: int) -> int:
        """Queries to compute where at least `count` of `most` are needed."""
        return min(most, 1 << (count - 1).bit_length()) if self.static and count > 0 else count

    def recorder(self, step: StepFunction) -> StepFunction:
        """The step for a batch of rows that stays as it is."""
        return step if self.record is None else Recordings(step, self.record)


class Recordings:
    """Steps of one batch, recorded when their shapes come back for the second time.

    The first time runs plainly: it compiles and allocates what a recording must find ready.
    """

    def __init__(self, step: StepFunction, record: Record) -> None:
        self.step = step
        self.record = record
        self.plays: dict[tuple[bool, int], Play | None] = {}

    def __call__(self, canvas: Canvas, progress: Progress, due: Due) -> "Outcome":
        """One step."""
        shape = due.shape
        if shape is None:
            return self.step(canvas, progress, due)
        if shape not in self.plays:
            self.plays[shape] = None
            return self.step(canvas, progress, due)
        play = self.plays[shape]
        if play is None:
            try:
                play = self.record(self.step, canvas, progress, due)
            except RuntimeError as error:
                warnings.warn(
                    f"this step cannot be recorded as a CUDA graph, and runs one kernel at a time: "
                    f"{error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

                def play(canvas: Canvas, progress: Progress) -> "Outcome":
                    return self.step(canvas, progress, due)

            self.plays[shape] = play
        return play(canvas, progress)


class CudaGraph:
    """A step as one CUDA graph, with buffers of its own for what goes in and comes out."""

    def __init__(self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due) -> None:
        """Record the step. It is not run."""
        self.inputs = mapped(torch.clone, (canvas, progress))
        self.graph = torch.cuda.CUDAGraph()
        caller = torch.cuda.current_stream()
        stream = torch.cuda.Stream()
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            self.graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.outcome = step(*self.inputs, due)
            finally:
                self.graph.capture_end()
        caller.wait_stream(stream)
        self.last: list[Any] = [None] * len(list(tensors(self.inputs)))

    def __call__(self, canvas: Canvas, progress: Progress) -> "Outcome":
        """Run it on other values. What comes out is good until it is run again."""
        given = list(tensors((canvas, progress)))
        load(list(tensors(self.inputs)), given, self.last)
        self.last = given
        self.graph.replay()
        return self.outcome


def load(buffers: list[Tensor], values: list[Tensor], last: list[Any]) -> None:
    """Copy what is not in its buffer yet.

    Most of a canvas never changes: the very tensors that were copied for the last step come again.
    """
    for buffer, value, before in zip(buffers, values, last, strict=True):
        if value is not before and value is not buffer:
            buffer.copy_(value)
