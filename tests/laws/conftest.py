"""Steps recorded and played again on a CPU, where no CUDA graph is."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from traceback import walk_stack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import dlm
from dlm.cache import Cache
from dlm.canvas import Canvas
from dlm.execution import Execution
from dlm.host import Mailbox, send
from dlm.kernels import checks
from dlm.lanes import Lanes
from dlm.models.model import Model
from dlm.packing import Packing
from dlm.places import Places
from dlm.progress import ForwardPlan, Progress
from dlm.recording import Record, Recording, pools
from dlm.runtime import Loop, Outcome


class Memory:
    """What recordings share: each writes over what others computed there, results included."""

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Operations] = weakref.WeakSet()


class Operations(TorchDispatchMode):
    """Notes what is asked of the device, and where its results lie."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: list[tuple[Tensor, int]] = []  # bytes, and what others leave in each
        self.memory = memory
        memory.users.add(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, leaves(out)))
        given = {each.untyped_storage().data_ptr() for each in leaves((args, kwargs))}
        for each in leaves(out):
            storage = each.untyped_storage()
            if storage.data_ptr() not in given:
                raw = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.own.append((raw, 1 if each.dtype == torch.bool else 0x7F))
        return out

    def again(self) -> None:
        """Do it once more, in the same memory."""
        with torch.inference_mode():
            for other in self.memory.users:
                for raw, left in other.own if other is not self else ():
                    raw.fill_(left)
        for func, args, kwargs, places in self.made:
            for place, new in zip(places, leaves(func(*args, **kwargs)), strict=True):
                if new.data_ptr() != place.data_ptr():  # else it is a view, or was changed in place
                    place.copy_(new)


def leaves(out: Any) -> list[Tensor]:
    """Tensors of a result, or of what was given."""
    return [part for part in tree_leaves(out) if isinstance(part, Tensor)]


class Trace(Recording):
    """What a CUDA graph is, on a CPU: the operations of one step, done again in the same memory.

    Whatever the host decided while it was recorded is decided for good, what is read lies where it
    lay then, and what a replay gives is overwritten by the next.
    """

    plays = 0

    def __init__(self, memory: Memory, *given: Any) -> None:
        self.memory = memory
        super().__init__(*given)

    def capture(self, whole: Callable[[], Outcome]) -> Outcome:
        with Operations(self.memory) as self.graph:
            return whole()

    def replay(self) -> None:
        Trace.plays += 1
        self.graph.again()


class Traces(Record):
    """Makes them."""

    def __init__(self) -> None:
        self.memory = Memory()

    def __call__(self, *given: Any) -> Trace | None:
        return Trace(self.memory, *given)


def executed(record: Callable[[], Record] = Traces, most: int = 1 << 40) -> Execution:
    return Execution(static=True, lanes=Lanes(record, most))


class ToyStream:
    """Notes what is asked of a stream, in the order of the host."""

    def __init__(self, name: object, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.cuda_stream = id(self)

    def wait_stream(self, other: "ToyStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        return f"the end of {self.name}"


class ToyCuda:
    """What `dlm.recording` asks of `torch.cuda`, with a CPU for the GPU."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools: list[Any] = []  # of each graph, in the order of their making
        self.streams: list[ToyStream] = []  # likewise, that it was captured on
        self.refused: BaseException | None = None  # what ends the first recording of a step
        self.always = False  # and all later ones
        self.few = [ToyStream("capture", self.log) for _ in range(3)]
        self.given = 0
        self.current = ToyStream("caller", self.log)
        self.graph = ToyGraph

    def graph_pool_handle(self) -> Memory:
        return Memory()

    def current_stream(self, device: Any = None) -> ToyStream:
        return self.current

    def Stream(self, device: Any) -> ToyStream:
        """A few in turn, as torch does."""
        self.given += 1
        return self.few[self.given % len(self.few)]

    @contextmanager
    def stream(self, stream: ToyStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def device(self, device: Any) -> Any:
        return nullcontext()

    def CUDAGraph(self) -> "ToyGraph":
        return ToyGraph(self)


class ToyGraph:
    """A CUDA graph that runs on a CPU while it is captured, too."""

    def __init__(self, cuda: ToyCuda) -> None:
        self.cuda = cuda

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert self.cuda.current.name == "capture"
        assert capture_error_mode == "thread_local"
        self.cuda.pools.append(pool)
        self.cuda.streams.append(self.cuda.current)
        self.operations = Operations(pool)
        self.operations.__enter__()  # type: ignore[no-untyped-call]

    def capture_end(self) -> None:
        self.operations.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        steps = len(self.cuda.pools) - 1  # the first keeps the pool
        if self.cuda.refused is not None and (steps == 1 or (steps > 1 and self.cuda.always)):
            raise self.cuda.refused

    def replay(self) -> None:
        self.operations.again()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ToyCuda:
    """`torch.cuda` on a CPU, for as much of it as recordings need."""
    toy = ToyCuda()
    for name in ("graph_pool_handle", "current_stream", "Stream", "stream", "device", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(toy, name))
    monkeypatch.setattr("dlm.recording.POOLS", weakref.WeakSet())
    pools.cache_clear()
    return toy


@pytest.fixture(scope="session")
def trace() -> type[Trace]:
    """A recording on a CPU."""
    return Trace


@pytest.fixture(scope="session")
def traces() -> type[Traces]:
    """What makes them."""
    return Traces


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ForwardPlan]:
    """What is due at every step that is made, those that are played again left out."""
    seen: list[ForwardPlan] = []
    step = Loop.step

    def watched(loop: Loop, canvas: Canvas, progress: Progress, plan: ForwardPlan) -> Outcome:
        seen.append(plan)
        return step(loop, canvas, progress, plan)

    monkeypatch.setattr(Loop, "step", watched)
    return seen


@pytest.fixture(scope="session")
def traced() -> Callable[..., Execution]:
    """Steps as on a GPU, recorded so: of what makes recordings, and how many bytes to keep."""
    return executed


@pytest.fixture
def execution(traced: Callable[..., Execution]) -> Execution:
    return traced()


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> "weakref.WeakSet[Cache]":
    """Those that are made while the test runs, as long as they live."""
    alive: weakref.WeakSet[Cache] = weakref.WeakSet()
    make = Cache.__init__

    def watched(self: Cache, rows: int, length: int) -> None:
        make(self, rows, length)
        alive.add(self)

    monkeypatch.setattr(Cache, "__init__", watched)
    return alive


@pytest.fixture(scope="session")
def chances() -> Callable[[Model, list[int]], Tensor]:
    """The law of each position of one row, by one forward, float64 [L, V]."""

    def of(model: Model, row: list[int]) -> Tensor:
        hidden = model.hidden(torch.tensor([row]), torch.arange(len(row))[None], None)
        logits = model.logits(hidden[0]).double()
        logits[:, list(model.spec.banned)] = -torch.inf
        return logits.softmax(-1)

    return of


@pytest.fixture
def model(golden_folder: Path) -> Model:
    """The golden one, for a test to change."""
    return dlm.load(golden_folder, dtype="float32")


WAITS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
"""What makes the host wait for a GPU, beside lists of what a mask marks."""


def refuse(name: str) -> Callable[..., Any]:
    """A method of a tensor that fails."""

    def wait(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"the host waits for the device: Tensor.{name}")

    return wait


def unsent(make: Callable[..., Any]) -> Callable[..., Any]:
    """One that puts no numbers of the host on a device, which waits even for a single one."""

    def made(data: Any, *given: Any, **options: Any) -> Any:
        if not isinstance(data, Tensor) and options.get("device") is not None:
            raise AssertionError(f"the host waits for the device: torch.{make.__name__}")
        return make(data, *given, **options)

    return made


@contextmanager
def unwaiting() -> Iterator[None]:
    """Fail on anything that would make the host wait."""

    waits = {name: getattr(Tensor, name) for name in WAITS}

    def on_a_cpu(call: Callable[..., Any]) -> Callable[..., Any]:
        """What the kernels ask of a CPU and never of a GPU."""

        def asked(*given: Any) -> Any:
            with pytest.MonkeyPatch.context() as allowed, _disable_current_modes():
                for name, wait in waits.items():
                    allowed.setattr(Tensor, name, wait)
                return call(*given)

        return asked

    with pytest.MonkeyPatch.context() as patch, Refuse():  # type: ignore[no-untyped-call]
        patch.setattr(checks, "check_positive", on_a_cpu(checks.check_positive))
        for name in WAITS:
            patch.setattr(Tensor, name, refuse(name))
        for make in (torch.tensor, torch.as_tensor):
            patch.setattr(torch, make.__name__, unsent(make))
        yield


SIZES = (  # of results, which the device alone knows
    "masked_select", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "bincount",
)  # fmt: skip
ANSWERS = ("_local_scalar_dense", "equal", "is_nonzero", "allclose")


def on_the_host() -> bool:
    """Whether this is work of the host, whose results go to the device through pinned memory."""
    mine = (send.__code__, Packing.of.__func__.__code__)  # type: ignore[attr-defined]
    return any(frame.f_code in mine for frame, _ in walk_stack(None))


class Refuse(TorchDispatchMode):
    """Fails on operations that read what the device has, or wait for a copy to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        lists = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        repeats = name == "repeat_interleave" and func._overloadname == "Tensor"
        copies = name == "lift_fresh" and args[0].dim()  # memory that is not pinned
        waits = lists or repeats or copies or name in (*SIZES, *ANSWERS)
        if waits and not on_the_host():
            raise AssertionError(f"the host waits for the device: {func}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def waits() -> tuple[str, ...]:
    """Methods of a tensor that make the host wait for a GPU."""
    return WAITS


@pytest.fixture(scope="session")
def forbidden() -> Callable[[], AbstractContextManager[None]]:
    """Makes what fails on anything that would make the host wait."""
    return unwaiting


@pytest.fixture
def waiting(
    forbidden: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Counts steps, in which the host may wait for nothing, and reads of a report."""
    counts: Counter[str] = Counter()
    step, read = Loop.step, Mailbox.read

    def watched(self: Loop, *given: Any) -> Outcome:
        counts["steps"] += 1
        with forbidden():
            return step(self, *given)

    def counted(self: Mailbox, report: Tensor) -> list[int]:
        counts["reads"] += 1
        return read(self, report)

    monkeypatch.delattr(Places, "where")
    monkeypatch.setattr(Loop, "step", watched)
    monkeypatch.setattr(Mailbox, "read", counted)
    return counts
