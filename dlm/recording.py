"""Steps recorded once, as CUDA graphs, and played again."""

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
from dlm.progress import Due, Progress
from dlm.slab import Slab
from dlm.tree import kinds, tensors

if TYPE_CHECKING:
    from dlm.runtime import Outcome

Made = TypeVar("Made")
StepFunction = Callable[[Canvas, Progress, Due], "Outcome"]
MOST: Final = 64
"""Recordings of rows of one number and length: each keeps what it gives."""


class Recording(ABC):
    """A step with memory of its own for what goes in and what comes out.

    What comes out, the canvas before the step included, is good until the next call.
    """

    def __init__(self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due) -> None:
        """Record the step. It is not run."""
        # What the step takes, and what the next one will, unless it is given something else. That
        # the one becomes the other is part of the recording: the host has better to do then.
        self.taken, self.coming = (Slab((canvas.tokens, progress)) for _ in range(2))
        tokens, self.progress = self.taken.value
        # The rest of the canvas lies where it is at every step, see `dlm.lanes.Workspace`.
        self.canvas = replace(canvas, tokens=tokens)
        self.due = due  # what the host had laid out of it is read again

        def whole() -> "Outcome":
            self.taken.follow(self.coming)
            made = step(self.canvas, self.progress, due)
            going = made.canvas.tokens, made.progress
            if not self.coming.holds(going):  # the first state of a decoder may be of its own kind
                return made
            self.coming.gather(going)
            tokens, progress = self.coming.value
            return replace(made, canvas=replace(made.canvas, tokens=tokens), progress=progress)

        self.outcome = self.capture(whole)
        held = {
            id(x): x.nbytes for x in tensors((self.taken.value, self.coming.value, self.outcome))
        }
        self.size = sum(held.values())  # bytes of what goes in and comes out

    def follows(self, progress: Progress) -> bool:
        """Whether this is what the last call came to."""
        return progress is self.coming.value[1]

    def __call__(self, canvas: Canvas, progress: Progress) -> "Outcome":
        """Run it on other values."""
        last = self.outcome
        if canvas is not last.canvas or not self.follows(progress):
            self.coming.copy((canvas.tokens, progress))
        self.replay()
        return last

    @abstractmethod
    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record what `whole` asks of the device; where its results will be."""

    @abstractmethod
    def replay(self) -> None:
        """Do what was recorded again, in the same memory."""


class Record(ABC):
    """Makes recordings of which one generation at a time plays some."""

    failed: bool = False
    """Whether one broke while it was made. No more are asked for then, nor are others played."""

    def free(self) -> None:  # noqa: B027 (most hold no memory)
        """Give up the memory of recordings, none of which is played any more."""

    def begin(self) -> None:  # noqa: B027 (most have nothing to wait for)
        """A generation begins, after all that the last one asked of the device."""

    def end(self) -> None:  # noqa: B027
        """A generation is over, and has asked the device for all it wanted."""

    @abstractmethod
    def __call__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due
    ) -> Recording | None:
        """Record a step; None, and a warning, where that is impossible.

        Raises:
            torch.OutOfMemoryError: the first time that memory is short.
        """


class Steps:
    """Steps of rows of one number and length, recorded when what they compute comes again.

    The first time of every thread runs plainly: it compiles and allocates what a recording must
    find ready, and libraries keep some of that, such as the handle of cuBLAS, for each thread.
    """

    def __init__(self, step: StepFunction, record: Record | None) -> None:
        self.step = step
        self.record = record
        # Or the threads that ran it plainly. The latest last.
        self.made: dict[Hashable, Recording | frozenset[object]] = {}
        self.latest: tuple[Due, Recording] | None = None  # what was asked and played last

    def __call__(self, canvas: Canvas, progress: Progress, due: Due) -> "Outcome":
        """One step."""
        if self.record is None or self.record.failed:
            self.latest = None
            self.made.clear()
            return self.step(canvas, progress, due)
        if self.latest is not None:  # most steps of a block: the device waits for this
            asked, played = self.latest
            if asked is due and played.follows(progress):
                return played(canvas, progress)
        # A decoder's first state need not be of the kind of its later ones.
        shape = (due.shape(canvas.tokens.shape[1]), kinds(progress.state))
        known = self.made.get(shape, frozenset())
        if not isinstance(known, Recording) and this_thread() in known:
            known = self.record(self.step, canvas, progress, due) or known
        if isinstance(known, Recording):
            made = known(canvas, progress)
        else:
            made, known = self.step(canvas, progress, due), known | {this_thread()}
        self.made.pop(shape, None)
        self.made[shape] = known
        self.latest = (due, known) if isinstance(known, Recording) else None
        if len(self.made) > MOST:
            del self.made[next(iter(self.made))]
        return made

    def forget(self) -> None:
        """Keep no recordings, only what is ready to be recorded."""
        self.latest = None
        kept = self.made.items()
        self.made = {shape: each for shape, each in kept if not isinstance(each, Recording)}

    @property
    def recordings(self) -> list[Recording]:
        """Those that there are, also while another thread makes more."""
        return [each for each in list(self.made.values()) if isinstance(each, Recording)]

    @property
    def size(self) -> int:
        """Bytes that recordings take and give, the canvas they share counted with each."""
        return sum(each.size for each in self.recordings)


THREAD: Final = threading.local()


def this_thread() -> object:
    """What stands for the current thread; its number may be that of another one later."""
    if not hasattr(THREAD, "mark"):
        THREAD.mark = object()
    mark: object = THREAD.mark
    return mark


class Pool:
    """Memory that recordings of a device share, a graph that keeps it, and their stream.

    torch gives a pool up with the last graph in it, and takes its name for no other then. The
    allocator gives what a graph has used to no one else until it runs out of memory, and within a
    recording not even then. So pools are kept, and later recordings take them over.

    cuBLAS works in memory that torch allocates once for each stream, by the first product that is
    recorded there, and that all later recordings of the stream read, until a graph of that stream
    goes (pytorch issue 193402). On a stream of its own it lies in the pool of just those.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.id = torch.cuda.graph_pool_handle()
        with CAPTURING:
            self.stream = unused_stream(device)
            POOLS.add(self)
        self.ended: torch.cuda.Event | None = None  # the last generation that had it
        self.keeper = torch.cuda.CUDAGraph()
        self.record(self.keeper, lambda: torch.zeros(1, device=device))

    def record(self, graph: Any, call: Callable[[], Made]) -> Made:
        """`capture` into it, which is one thread's at a time."""
        with CAPTURING, uncollected(), torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            self.stream.wait_stream(caller)
            with torch.cuda.stream(self.stream):
                made = capture(graph, call, self.id)
            caller.wait_stream(self.stream)
        return made


POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()
"""All that there are."""
STREAMS: Final = 32
"""That torch hands out for a device, in turn."""


class NoStream(RuntimeError):
    """All streams have recordings, of generations that go on or that are kept."""


def unused_stream(device: torch.device) -> torch.cuda.Stream:
    """One that no pool has, and not the current one.

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
    """Those of a device that nothing is recorded in now."""
    return []


def take(device: torch.device) -> Pool:
    """One that nothing is recorded in."""
    try:
        pool = pools(device).pop()  # asked first, another thread might come between
    except IndexError:
        return Pool(device)
    if pool.ended is not None:
        torch.cuda.current_stream(device).wait_event(pool.ended)
    return pool


class GraphRecorder(Record):
    """Makes recordings in one pool, for one generation at a time.

    Two generations that go on by turns must not share one: each writes over what the other left.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Pool | None = None
        self.short = False  # whether memory was, once
        self.crowded = False  # whether no stream was left for this generation
        self.ended: torch.cuda.Event | None = None

    def begin(self) -> None:
        """As `Record`, whichever stream the last generation was on."""
        self.crowded = False
        if self.ended is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ended)

    def end(self) -> None:
        """As `Record`."""
        self.ended = torch.cuda.current_stream(self.device).record_event()
        if self.pool is not None:
            self.pool.ended = self.ended

    def free(self) -> None:
        """As `Record`. The pool goes with its last graph, and its memory to `empty_cache`."""
        if self.pool is not None:
            self.returned.detach()
            self.pool = None

    def fail(self) -> None:
        """Make no more, and leave memory to nobody whose state is unknown."""
        self.failed = True
        self.free()
        with contextlib.suppress(RuntimeError):
            # torch before 2.13 draws no random numbers until a recording has ended well.
            Pool(self.device)

    def __call__(
        self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due
    ) -> "CudaGraph | None":
        """As `Record`."""
        if self.crowded:
            return None
        try:
            if self.pool is None:
                self.pool = take(self.device)
                self.returned = weakref.finalize(self, pools(self.device).append, self.pool)
                self.returned.atexit = False
            if self.short:  # while it records torch takes nothing from what plain steps left
                torch.cuda.empty_cache()
            return CudaGraph(step, canvas, progress, due, self.pool)
        except BaseException as error:
            if isinstance(error, torch.OutOfMemoryError) and not self.short:
                self.short = True
                raise  # there may be more without what is kept
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
        self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due, pool: Pool
    ) -> None:
        """Record the step. It is not run."""
        self.pool = pool
        super().__init__(step, canvas, progress, due)

    def capture(self, whole: Callable[[], "Outcome"]) -> "Outcome":
        """Record into the pool."""
        self.graph = torch.cuda.CUDAGraph()
        return self.pool.record(self.graph, whole)

    def replay(self) -> None:
        """Launch the graph, on its own device whichever is the current one."""
        self.graph.replay()


CAPTURING: Final = threading.Lock()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which might end something on a stream that is recorded."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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
