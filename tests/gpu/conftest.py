import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dlm.execution import Execution
from dlm.job import generation_job
from dlm.lanes import Lanes
from dlm.models.model import Model
from dlm.recording import Record
from dlm.settings import Settings

Forbidding = Callable[[], AbstractContextManager[None]]
Launched = Callable[..., Counter[str]]


@pytest.fixture
def launched() -> Launched:
    """How often each kernel is launched in a replayed step of a window."""

    def count(model: Model, row: list[int], *, stop_at_eos: bool) -> Counter[str]:
        settings = Settings(gen_length=12, block_length=12, cache="dual", stop_at_eos=stop_at_eos)
        with torch.inference_mode():
            steps = generation_job(model, [row], settings).steps()
            for _ in range(4):
                next(steps)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
                next(steps)
                torch.cuda.synchronize()
        return Counter(event.name for event in profiler.events())

    return count


@pytest.fixture
def no_waits() -> Forbidding:
    """A block in which the host may not wait for the device."""

    @contextmanager
    def forbidding() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that not all waits are found
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return forbidding


class Never(Record):
    """Records nothing."""

    failed = True

    def __call__(self, *_: object) -> None:
        raise AssertionError("a step is recorded")


@pytest.fixture
def unrecorded() -> Execution:
    """Shapes as where steps are recorded, and each of them run kernel by kernel."""
    return Execution(static=True, lanes=Lanes(Never, 0))
