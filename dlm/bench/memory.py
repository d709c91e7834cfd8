"""Peak memory that a call uses beyond what was in use before."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

CUDA = "torch.cuda.max_memory_allocated"
CPU = "torch.profiler, running sum of every allocation and release"


def method(device: torch.device) -> str:
    """How memory is measured on a device."""
    return CUDA if device.type == "cuda" else CPU


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Allocated bytes at the peak of a call, less those allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with hushed(), torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:  # fmt: skip
        kept = call()
    del kept
    recorded: Any = profile.profiler
    events = (e for e in recorded.kineto_results.events() if e.name() == "[memory]")
    return peak((event.start_ns(), event.nbytes()) for event in events)


def peak(changes: Iterable[tuple[int, int]]) -> int:
    """The largest running sum of changes (time, bytes)."""
    total = most = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        total += change
        most = max(most, total)
    return most


@contextmanager
def hushed() -> Iterator[None]:
    """Suppress the two lines that the profiler's C++ code writes to stderr."""
    shown = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)
