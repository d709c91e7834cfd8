"""The peak speed of this machine, measured in the run that is compared with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.bench.events import Gpu, Timed
from dlm.bench.timing import WALL, seconds, wait

CPU_COPY, CUDA_COPY = 1 << 27, 1 << 30  # bytes, larger than every cache
CPU_SIDE, CUDA_SIDE = 1024, 8192  # side of the matrices
TRIES = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of a few measurements."""

    bandwidth: float  # bytes per second of a copy, read and written
    matmul: float  # flops per second of a square product
    by: str  # how both were timed

    def record(self) -> dict[str, float | str]:
        """The entries of a result."""
        return {
            "copy bytes per second": self.bandwidth,
            "matmul flops per second": self.matmul,
            "ceilings timed by": self.by,
        }


def ceilings(device: torch.device, dtype: torch.dtype, gpu: Gpu | None) -> Ceilings:
    """Measure the ceilings; on a GPU by device time."""
    cpu = device.type == "cpu"
    size = CPU_COPY if cpu else CUDA_COPY
    source = torch.randn(size // 4, device=device)  # zeros may move faster than real data
    target = torch.empty_like(source)
    copied, copy_by = best(lambda: move(source, target), device, gpu)
    side = CPU_SIDE if cpu else CUDA_SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    multiplied, product_by = best(lambda: torch.mm(left, right, out=out), device, gpu)
    by = "; ".join(dict.fromkeys((copy_by, product_by)))
    return Ceilings(2 * size / copied, 2 * side**3 / multiplied, by)


def move(source: Tensor, target: Tensor) -> None:
    """Read a tensor and write as many bytes, as fast as the device can.

    On a GPU this uses a kernel, because a plain copy recorded in a CUDA graph is far slower.
    """
    if source.is_cuda:
        torch.neg(source, out=target)
    else:
        target.copy_(source)


def best(call: Callable[[], object], device: torch.device, gpu: Gpu | None) -> tuple[float, str]:
    """The least time of a call, as the one least disturbed, and how it was measured."""
    if gpu is not None:
        timed = Timed.of(gpu, [call])
        return min(timed.seconds() for _ in range(TRIES)), timed.by
    call()
    wait(device)
    return min(seconds(call, device) for _ in range(TRIES)), WALL
