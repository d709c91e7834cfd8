"""The most this machine does at all, measured in the run that is compared with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlm.bench.timing import seconds, wait

CPU_COPY, CUDA_COPY = 1 << 27, 1 << 30  # bytes, beyond every cache
CPU_SIDE, CUDA_SIDE = 1024, 8192  # of the matrices
TRIES = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best of a few tries."""

    bandwidth: float  # bytes a second of a copy, read and written
    matmul: float  # flops a second of a square product

    def record(self) -> dict[str, float]:
        """What a result says of them."""
        return {"copy bytes per second": self.bandwidth, "matmul flops per second": self.matmul}


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure them."""
    cpu = device.type == "cpu"
    size = CPU_COPY if cpu else CUDA_COPY
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / best(lambda: target.copy_(source), device)
    side = CPU_SIDE if cpu else CUDA_SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    multiplied = 2 * side**3 / best(lambda: torch.mm(left, right, out=out), device)
    return Ceilings(copied, multiplied)


def best(call: Callable[[], object], device: torch.device) -> float:
    """Least wall time: a ceiling is what nothing disturbed."""
    call()
    wait(device)
    return min(seconds(call, device) for _ in range(TRIES))
