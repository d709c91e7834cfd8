import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

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
