"""Device time of calls: recorded once, played between two events.

On a GPU a call of a few microseconds is lost in the time that the host takes to ask for it. A CUDA
graph asks for many at once, and events are read off the device's own clock.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dlm.recording import capture

LASTING = 0.02  # seconds that a measurement should take, so that its ends do not matter
GRAPH = "events around replays of a CUDA graph"
PLAIN = "events around plain calls, as recording failed"

Call = Callable[[], object]


class UnrecordableError(Exception):
    """A call ran plainly, and could not be recorded."""


class Gpu(Protocol):
    """What timing asks of a device that works on while the host goes on."""

    def record(self, call: Call) -> Call:
        """What does again what a call asks of the device, after one plain call.

        Raises:
            UnrecordableError: that is impossible.
        """
        ...

    def mark(self) -> Any:
        """A point in the work of the device."""
        ...

    def between(self, begin: Any, end: Any) -> float:
        """Seconds from one point to another, once the device is past both."""
        ...


class Cuda:
    """A CUDA device, with CUDA graphs and events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()

    def record(self, call: Call) -> Call:
        """A graph. Both calls are made on one stream, as libraries keep memory by stream."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            self.stream.wait_stream(caller)
            with torch.cuda.stream(self.stream):
                call()
                self.stream.synchronize()
                try:
                    capture(graph, call)
                except RuntimeError as error:
                    raise UnrecordableError(str(error).partition("\n")[0]) from error
            caller.wait_stream(self.stream)
        return graph.replay

    def mark(self) -> Any:
        """An event on the current stream."""
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """By the events' clock, which ticks in half microseconds."""
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))


def gpu_of(device: torch.device) -> Gpu | None:
    """What times a device; None where the wall clock does."""
    return Cuda(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls that are timed together."""

    gpu: Gpu
    play: Call  # all of them
    calls: int
    plays: int  # in one measurement
    by: str

    @classmethod
    def of(cls, gpu: Gpu, calls: Sequence[Call]) -> "Timed":
        """Record the calls in their order, as one; without a recording they are made plainly."""

        def every() -> None:
            for call in calls:
                call()

        play, by = recorded(gpu, every)
        play()
        once = took(gpu, play, 1)
        return cls(gpu, play, len(calls), max(1, math.ceil(LASTING / max(once, 1e-6))), by)

    def seconds(self) -> float:
        """Device time of one call, the mean of one measurement."""
        return took(self.gpu, self.play, self.plays) / (self.plays * self.calls)


def recorded(gpu: Gpu, call: Call) -> tuple[Call, str]:
    """A call as it is to be timed, and how that is."""
    try:
        return gpu.record(call), GRAPH
    except UnrecordableError as error:
        return call, f"{PLAIN}: {error}"


def took(gpu: Gpu, play: Call, plays: int) -> float:
    """Seconds of the device from the first of some plays to the end of the last."""
    begin = gpu.mark()
    for _ in range(plays):
        play()
    return gpu.between(begin, gpu.mark())
