"""How steps are run: one kernel at a time, or recorded once and played again."""

import contextlib
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.models.model import Model
from dlm.progress import Due, Progress
from dlm.tree import mapped, tensors

if TYPE_CHECKING:
    from dlm.runtime import Outcome

Made = TypeVar("Made")
StepFunction = Callable[[Canvas, Progress, Due], "Outcome"]
Record = Callable[[StepFunction, Canvas, Progress, Due], "Recording"]


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

        A subclass of `Model` is not recorded: what it does at its calls would be done once. Nor
        are networks of transformers, attention that takes no masks and experts that are looped
        over, which ask the device, and networks whose steps could not be recorded before.
        """
        if model.device.type != "cuda":
            return cls()
        recorded = (
            type(model) is Model
            and model.spec.caches
            and model.takes_masks
            and model.network not in UNRECORDED
            and {weight.device for weight in model.network.parameters()} == {model.device}
            and not loops_over_experts(model.network)
        )
        return cls(static=True, record=Recorder(model.network) if recorded else None)

    def leaves(self, live: Sequence[bool]) -> bool:
        """Whether rows that are done leave the batch now."""
        going = sum(live)
        return going <= len(live) // 2 if self.static else going < len(live)

    def bucket(self, count: int, most: int) -> int:
        """Queries to compute where at least `count` of `most` are needed."""
        return min(most, 1 << (count - 1).bit_length()) if self.static and count > 0 else count


def loops_over_experts(network: Any) -> bool:
    """Whether it asks the device which experts there is work for.

    transformers notes "eager" in the configuration of networks without experts, too.
    """
    packs = getattr(network, "packs_experts", False)
    return packs and getattr(network.config, "_experts_implementation", None) == "eager"


class Steps:
    """The steps of a generation, recorded when their shapes come back for the second time.

    The first time runs plainly: it compiles and allocates what a recording must find ready.
    """

    def __init__(self, step: StepFunction, record: Record | None) -> None:
        self.step = step
        self.record = record
        self.made: dict[tuple[bool, int], Recording | None] = {}

    def forget(self) -> None:
        """Drop what was recorded of a batch whose rows have changed."""
        self.made.clear()

    def __call__(self, canvas: Canvas, progress: Progress, due: Due) -> "Outcome":
        """One step."""
        shape = due.shape
        if self.record is None or shape is None:
            return self.step(canvas, progress, due)
        if shape not in self.made:
            self.made[shape] = None
            return self.step(canvas, progress, due)
        recording = self.made[shape]
        if recording is None:
            try:
                recording = self.made[shape] = self.record(self.step, canvas, progress, due)
            except RuntimeError as error:
                self.record = None
                warnings.warn(
                    "steps cannot be recorded as CUDA graphs, and run one kernel at a time: "
                    f"{error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return self.step(canvas, progress, due)
        return recording(canvas, progress)


class Recording(ABC):
    """A step with memory of its own for what goes in and what comes out.

    What comes out, the canvas before the step included, is good until the next call.
    """

    def __init__(self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due) -> None:
        """Record the step. It is not run."""
        # The rest of the canvas stays as it is while the batch does, and is kept from being freed.
        self.canvas = replace(canvas, tokens=canvas.tokens.clone())
        self.progress = mapped(torch.clone, progress)

        def whole() -> "Outcome":
            made = step(self.canvas, self.progress, due)
            taken = {id(each) for each in tensors((self.canvas, self.progress))}
            # A decoder may hand a state on: next time it must not be overwritten before it is read.
            going = mapped(lambda x: x.clone() if id(x) in taken else x, made.progress)
            return replace(made, progress=going)

        self.outcome = self.capture(whole)

    def __call__(self, canvas: Canvas, progress: Progress) -> "Outcome":
        """Run it on other values."""
        copy_all([self.canvas.tokens, *tensors(self.progress)], [canvas.tokens, *tensors(progress)])
        self.replay()
        return self.outcome

    @abstractmethod
    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record what `whole` asks of the device; where its results will be."""

    @abstractmethod
    def replay(self) -> None:
        """Do what was recorded again, in the same memory."""


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors of any dtypes, with one call for all that share theirs."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        into, of = groups.setdefault(target.dtype, ([], []))
        into.append(target)
        of.append(source)
    for into, of in groups.values():
        torch._foreach_copy_(into, of)


UNRECORDED: Final[weakref.WeakSet[torch.nn.Module]] = weakref.WeakSet()
"""Networks that a recording failed for: each failure may cost memory, so there is one at most."""


class Pool:
    """Memory that recordings of a device share, and a graph that keeps it.

    torch gives a pool up with the last graph in it, and takes its name for no other then. The
    allocator gives what a graph has used to no one else until it runs out of memory, and within a
    recording not even then. So pools are kept, and later generations take them over.
    """

    def __init__(self, device: torch.device) -> None:
        self.id = torch.cuda.graph_pool_handle()
        self.keeper = torch.cuda.CUDAGraph()
        record(self.keeper, lambda: torch.zeros(1, device=device), self.id, device)


@cache
def pools(device: torch.device) -> list[Pool]:
    """Those of a device that no generation uses now."""
    return []


class Recorder:
    """Makes the recordings of one generation, in one pool.

    Two generations that go on by turns must not share one: each writes over what the other left.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.pool: Pool | None = None

    def __call__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due
    ) -> "CudaGraph":
        """Record a step."""
        device = canvas.tokens.device
        try:
            if self.pool is None:
                unused = pools(device)
                try:
                    self.pool = unused.pop()  # asked first, another thread might come between
                except IndexError:
                    self.pool = Pool(device)
                self.returned = weakref.finalize(self, unused.append, self.pool)
                self.returned.atexit = False
            return CudaGraph(step, canvas, progress, due, self.pool)
        except RuntimeError:
            if self.pool is not None:
                self.returned.detach()  # nobody knows what state the pool is in
            UNRECORDED.add(self.network)
            raise


class CudaGraph(Recording):
    """A step as one CUDA graph."""

    def __init__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due, pool: Pool
    ) -> None:
        """Record the step. It is not run."""
        self.pool = pool
        super().__init__(step, canvas, progress, due)

    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record into the pool."""
        self.graph = torch.cuda.CUDAGraph()
        return record(self.graph, whole, self.pool.id, self.canvas.tokens.device)

    def replay(self) -> None:
        """Launch the graph."""
        with torch.cuda.device(self.canvas.tokens.device):
            self.graph.replay()


CAPTURING: Final = threading.Lock()


def record(graph: Any, call: Callable[[], Made], pool: Any, device: torch.device) -> Made:
    """`capture` on a stream of its own, which is one thread's at a time."""
    with CAPTURING, torch.cuda.device(device):
        caller, stream = torch.cuda.current_stream(), capture_stream(device)
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            made = capture(graph, call, pool)
        caller.wait_stream(stream)
    return made


def capture(graph: Any, call: Callable[[], Made], pool: Any = None) -> Made:
    """Record what a call asks of the current stream in a `torch.cuda.CUDAGraph`; what it returns.

    Raises:
        RuntimeError: the call asks for something that cannot be recorded.
    """
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        made = call()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # which hides what it follows from
            graph.capture_end()
        raise
    graph.capture_end()
    return made


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that steps are recorded on, one for a device: libraries keep memory by stream."""
    return torch.cuda.Stream(device)
