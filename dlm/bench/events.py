"""Device time of calls, which are recorded once and replayed between two events.

On a GPU, a call of a few microseconds takes less time than the host needs to launch it. A CUDA
graph launches many calls at once, and events are timed by the device's own clock.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dlm.recording import capture

LASTING = 0.02  # least seconds of a measurement, so that its ends do not matter
GRAPH = "events around replays of a CUDA graph"
PLAIN = "events around plain calls, as recording failed"

Call = Callable[[], object]


class UnrecordableError(Exception):
    """A call succeeded when run plainly, but could not be recorded."""


class Gpu(Protocol):
    """The operations that timing needs from a device that runs asynchronously to the host."""

    def record(self, call: Call) -> Call:
        """Make one plain call, then return a function that repeats the call's work on the device.

        Raises:
            UnrecordableError: the call cannot be recorded.
        """
        ...

    def mark(self) -> Any:
        """Mark a point in the device's work queue."""
        ...

    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, once the device has passed both."""
        ...


class Cuda:
    """A CUDA device, with CUDA graphs and events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()

    def record(self, call: Call) -> Call:
        """Record a CUDA graph; both calls use one stream, as libraries keep memory by stream."""
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
        """Record an event on the current stream."""
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two events, whose clock has a resolution of half a microsecond."""
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))


def gpu_of(device: torch.device) -> Gpu | None:
    """The timer of a device; None if the wall clock is used."""
    return Cuda(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls that are timed together."""

    gpu: Gpu
    play: Call  # runs all of them
    calls: int
    plays: int  # plays in one measurement
    by: str

    @classmethod
    def of(cls, gpu: Gpu, calls: Sequence[Call]) -> "Timed":
        """Record all calls in order as one graph; if that fails, they are made plainly."""

        def every() -> None:
            for call in calls:
                call()

        play, by = recorded(gpu, every)
        play()
        once = took(gpu, play, 1)
        return cls(gpu, play, len(calls), max(1, math.ceil(LASTING / max(once, 1e-6))), by)

    def seconds(self) -> float:
        """Device time of one call, averaged over one measurement."""
        return took(self.gpu, self.play, self.plays) / (self.plays * self.calls)


def recorded(gpu: Gpu, call: Call) -> tuple[Call, str]:
    """A call in the form to be timed, and a description of how it is timed."""
    try:
        return gpu.record(call), GRAPH
    except UnrecordableError as error:
        return call, f"{PLAIN}: {error}"


def took(gpu: Gpu, play: Call, plays: int) -> float:
    """Device seconds from the start of the first play to the end of the last."""
    begin = gpu.mark()
    for _ in range(plays):
        play()
    return gpu.between(begin, gpu.mark())
