import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from dlm.execution import Execution
from dlm.lanes import Lanes
from dlm.recording import Record

Forbidding = Callable[[], AbstractContextManager[None]]


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
