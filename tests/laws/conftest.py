"""Steps recorded and played again on a CPU, where no CUDA graph is."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlm.execution import Execution
from dlm.lanes import Lanes
from dlm.recording import Record, Recording
from dlm.runtime import Outcome


class Operations(TorchDispatchMode):
    """Notes what is asked of the device, and where its results lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, leaves(out)))
        return out

    def again(self) -> None:
        """Do it once more, in the same memory."""
        for func, args, kwargs, places in self.made:
            for place, new in zip(places, leaves(func(*args, **kwargs)), strict=True):
                if new.data_ptr() != place.data_ptr():  # else it is a view, or was changed in place
                    place.copy_(new)


def leaves(out: Any) -> list[Tensor]:
    """Tensors of a result."""
    parts = out if isinstance(out, tuple | list) else [out]
    return [part for part in parts if isinstance(part, Tensor)]


class Trace(Recording):
    """What a CUDA graph is, on a CPU: the operations of one step, done again in the same memory.

    Whatever the host decided while it was recorded is decided for good, what is read lies where it
    lay then, and what a replay gives is overwritten by the next.
    """

    plays = 0

    def capture(self, whole: Callable[[], Outcome]) -> Outcome:
        with Operations() as self.graph:
            return whole()

    def replay(self) -> None:
        Trace.plays += 1
        self.graph.again()


class Traces:
    """Makes them."""

    failed: bool = False

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def __call__(self, *given: Any) -> Trace:
        return Trace(*given)


def executed(record: Callable[[], Record] = Traces, most: int = 1 << 40) -> Execution:
    return Execution(static=True, lanes=Lanes(record, most))


@pytest.fixture(scope="session")
def trace() -> type[Trace]:
    """A recording on a CPU."""
    return Trace


@pytest.fixture(scope="session")
def traces() -> type[Traces]:
    """What makes them."""
    return Traces


@pytest.fixture(scope="session")
def traced() -> Callable[..., Execution]:
    """Steps as on a GPU, recorded so: of what makes recordings, and how many bytes to keep."""
    return executed
