"""Steps recorded once as CUDA graphs, and replayed."""

import contextlib
import gc
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from dlm.canvas import Canvas
from dlm.progress import ForwardPlan, Progress
from dlm.slab import Slab
from dlm.tree import kinds, tensors

if TYPE_CHECKING:
    from dlm.runtime import Outcome

Made = TypeVar("Made")
StepFunction = Callable[[Canvas, Progress, ForwardPlan], "Outcome"]
MOST: Final = 64
"""Most recordings for canvases of one shape: each keeps memory for its outputs."""


class Recording(ABC):
    """A recorded step, with its own memory for inputs and outputs.

    The outputs, including the canvas before the step, are valid until the next call.
    """

    def __init__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, plan: ForwardPlan
    ) -> None:
        """Record the step, without running it."""
        # The inputs of this step, and those of the next one, unless others are passed. Copying the
        # latter to the former is part of the recording, to save the host that work.
        self.taken, self.coming = (Slab((canvas.tokens, progress)) for _ in range(2))
        tokens, self.progress = self.taken.value
        # The rest of the canvas has a fixed address, see `dlm.lanes.Workspace`.
        self.canvas = replace(canvas, tokens=tokens)
        self.plan = plan  # keeps alive the tensors the recording reads

        def whole() -> "Outcome":
            self.taken.follow(self.coming)
            made = step(self.canvas, self.progress, plan)
            going = made.canvas.tokens, made.progress
            if not self.coming.holds(going):  # a decoder's first state may differ in kind
                return made
            self.coming.gather(going)
            tokens, progress = self.coming.value
            return replace(made, canvas=replace(made.canvas, tokens=tokens), progress=progress)

        self.outcome = self.capture(whole)
        held = {
            id(x): x.nbytes for x in tensors((self.taken.value, self.coming.value, self.outcome))
        }
        self.size = sum(held.values())  # bytes of inputs and outputs

    def follows(self, progress: Progress) -> bool:
        """Whether `progress` is the output of the last call."""
        return progress is self.coming.value[1]

    def __call__(self, canvas: Canvas, progress: Progress) -> "Outcome":
        """Run it on these values."""
        last = self.outcome
        if canvas is not last.canvas or not self.follows(progress):
            self.coming.copy((canvas.tokens, progress))
        self.replay()
        return last

    @abstractmethod
    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record the device work of `whole`; returns where its results will be."""

    @abstractmethod
    def replay(self) -> None:
        """Run the recorded work again, in the same memory."""


class Record(ABC):
    """Makes recordings, of which one generation at a time replays some."""

    failed: bool = False
    """Whether a recording failed. Then no more are made, and no others replayed."""

    def free(self) -> None:  # noqa: B027 (most hold no memory)
        """Release the memory of recordings, none of which will be replayed."""

    def begin(self) -> None:  # noqa: B027 (most have nothing to wait for)
        """Begin a generation, after all device work of the previous one."""

    def end(self) -> None:  # noqa: B027
        """End a generation, which has queued all of its device work."""

    @abstractmethod
    def __call__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, plan: ForwardPlan
    ) -> Recording | None:
        """Record a step; None, with a warning, if that is impossible.

        Raises:
            torch.OutOfMemoryError: the first time that memory runs out.
        """


class Steps:
    """Runs steps for canvases of one shape, recording them when the same work comes again.

    The first time in every thread runs plainly: it compiles and allocates what a recording needs,
    and libraries keep some of that, such as the cuBLAS handle, per thread.
    """

    def __init__(self, step: StepFunction, record: Record | None) -> None:
        self.step = step
        self.record = record
        # A recording, or the threads that ran it plainly. Most recently used last.
        self.made: dict[Hashable, Recording | frozenset[object]] = {}
        self.latest: tuple[ForwardPlan, Recording] | None = (
            None  # the last request and its recording
        )

    def __call__(self, canvas: Canvas, progress: Progress, plan: ForwardPlan) -> "Outcome":
        """One step."""
        if self.record is None or self.record.failed:
            self.latest = None
            self.made.clear()
            return self.step(canvas, progress, plan)
        if self.latest is not None:  # fast path for most steps of a block: the device is waiting
            asked, played = self.latest
            if asked is plan and played.follows(progress):
                return played(canvas, progress)
        # A decoder's first state may differ in kind from later ones.
        shape = (plan.shape(canvas.tokens.shape[1]), kinds(progress.state))
        known = self.made.get(shape, frozenset())
        if not isinstance(known, Recording) and this_thread() in known:
            known = self.record(self.step, canvas, progress, plan) or known
        if isinstance(known, Recording):
            made = known(canvas, progress)
        else:
            made, known = self.step(canvas, progress, plan), known | {this_thread()}
        self.made.pop(shape, None)
        self.made[shape] = known
        self.latest = (plan, known) if isinstance(known, Recording) else None
        if len(self.made) > MOST:
            del self.made[next(iter(self.made))]
        return made

    def forget(self) -> None:
        """Drop all recordings, but remember which steps ran plainly."""
        self.latest = None
        kept = self.made.items()
        self.made = {shape: each for shape, each in kept if not isinstance(each, Recording)}

    @property
    def recordings(self) -> list[Recording]:
        """The recordings; safe while another thread makes more."""
        return [each for each in list(self.made.values()) if isinstance(each, Recording)]

    @property
    def size(self) -> int:
        """Bytes of the recordings' inputs and outputs; the canvas they share counts for each."""
        return sum(each.size for each in self.recordings)


THREAD: Final = threading.local()


def this_thread() -> object:
    """A token for the current thread; unlike its number, it is never reused."""
    if not hasattr(THREAD, "mark"):
        THREAD.mark = object()
    mark: object = THREAD.mark
    return mark


class Pool:
    """Memory that recordings of a device share, a graph that keeps it alive, and their stream.

    torch frees a pool with the last graph in it, and then does not reuse its handle. The allocator
    gives memory that a graph has used to nothing else until it runs out, and within a recording not
    even then. So pools are kept, and later recordings take them over.

    cuBLAS uses a workspace that torch allocates once per stream, at the first product recorded
    there; all later recordings of the stream read it, until a graph of that stream is destroyed
    (pytorch issue 193402). With a stream of its own, the workspace lies in the pool of just these
    recordings.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.id = torch.cuda.graph_pool_handle()
        with CAPTURING:
            self.stream = unused_stream(device)
            POOLS.add(self)
        self.ended: torch.cuda.Event | None = None  # of the last generation that used it
        self.keeper = torch.cuda.CUDAGraph()
        self.record(self.keeper, lambda: torch.zeros(1, device=device))

    def record(self, graph: Any, call: Callable[[], Made]) -> Made:
        """`capture` into the pool; one thread at a time."""
        with CAPTURING, uncollected(), torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            self.stream.wait_stream(caller)
            with torch.cuda.stream(self.stream):
                made = capture(graph, call, self.id)
            caller.wait_stream(self.stream)
        return made


POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()
"""All existing pools."""
STREAMS: Final = 32
"""Number of streams that torch hands out for a device, in turn."""


class NoStream(RuntimeError):
    """All streams have recordings, of running generations or kept ones."""


def unused_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no pool uses, and not the current one.

    Raises:
        NoStream: there is none left.
    """
    taken = {pool.stream.cuda_stream for pool in POOLS if pool.device == device}
    taken.add(torch.cuda.current_stream(device).cuda_stream)
    for _ in range(STREAMS):
        stream = torch.cuda.Stream(device)
        if stream.cuda_stream not in taken:
            return stream
    raise NoStream(f"all {STREAMS} streams of {device} have recordings")


@cache
def pools(device: torch.device) -> list[Pool]:
    """The pools of a device in which nothing is being recorded."""
    return []


def take(device: torch.device) -> Pool:
    """A pool in which nothing is being recorded."""
    try:
        pool = pools(device).pop()  # checking first would race with other threads
    except IndexError:
        return Pool(device)
    if pool.ended is not None:
        torch.cuda.current_stream(device).wait_event(pool.ended)
    return pool


class GraphRecorder(Record):
    """Makes recordings in one pool, for one generation at a time.

    Two generations whose steps alternate must not share one: each would overwrite the other's
    results.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Pool | None = None
        self.short = False  # whether memory has run out once
        self.crowded = False  # whether no stream was left for this generation
        self.ended: torch.cuda.Event | None = None

    def begin(self) -> None:
        """As in `Record`, on whichever stream the last generation ran."""
        self.crowded = False
        if self.ended is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ended)

    def end(self) -> None:
        """As in `Record`."""
        self.ended = torch.cuda.current_stream(self.device).record_event()
        if self.pool is not None:
            self.pool.ended = self.ended

    def free(self) -> None:
        """As in `Record`. The pool goes with its last graph, its memory with `empty_cache`."""
        if self.pool is not None:
            self.returned.detach()
            self.pool = None

    def fail(self) -> None:
        """Make no more recordings, and release the pool without reuse, as its state is unknown."""
        self.failed = True
        self.free()
        with contextlib.suppress(RuntimeError):
            # Before 2.13, torch draws no random numbers until a later recording has succeeded.
            Pool(self.device)

    def __call__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, plan: ForwardPlan
    ) -> "CudaGraph | None":
        """As in `Record`."""
        if self.crowded:
            return None
        try:
            if self.pool is None:
                self.pool = take(self.device)
                self.returned = weakref.finalize(self, pools(self.device).append, self.pool)
                self.returned.atexit = False
            if self.short:  # a recording cannot use memory that plain steps left cached
                torch.cuda.empty_cache()
            return CudaGraph(step, canvas, progress, plan, self.pool)
        except BaseException as error:
            if isinstance(error, torch.OutOfMemoryError) and not self.short:
                self.short = True
                raise  # the caller frees what is kept, and retries
            if isinstance(error, NoStream):
                self.crowded = True
            else:
                self.fail()
            if not isinstance(error, RuntimeError):
                raise
            warnings.warn(
                f"steps cannot be recorded as CUDA graphs, and run one kernel at a time: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None


class CudaGraph(Recording):
    """A step as one CUDA graph."""

    def __init__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, plan: ForwardPlan, pool: Pool
    ) -> None:
        """Record the step, without running it."""
        self.pool = pool
        super().__init__(step, canvas, progress, plan)

    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record into the pool."""
        self.graph = torch.cuda.CUDAGraph()
        return self.pool.record(self.graph, whole)

    def replay(self) -> None:
        """Launch the graph, on its own device whichever is current."""
        self.graph.replay()


CAPTURING: Final = threading.Lock()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector, which might free something on a stream being recorded."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def capture(graph: Any, call: Callable[[], Made], pool: Any = None) -> Made:
    """Record a call's work on the current stream in a `torch.cuda.CUDAGraph`; returns its result.

    Raises:
        RuntimeError: the call does something that cannot be recorded.
    """
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        made = call()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it would hide the original error
            graph.capture_end()
        raise
    graph.capture_end()
    return made
