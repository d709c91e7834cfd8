"""What a GPU can run."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def capability(index: int) -> tuple[int, int] | None:
    """Compute capability of a CUDA device for Triton kernels; None where they do not run.

    The result is cached, so later calls cost nothing.
    """
    if torch.version.hip is not None or find_spec("triton") is None:
        return None
    return torch.cuda.get_device_capability(index)
