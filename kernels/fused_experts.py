"""Products of 8-bit integers with the expert matrices of a mixture of experts.

A choice is one expert of one token. Choices are sorted by expert, and cut into tiles of one
expert each. Only the device knows how many choices an expert has, so there are programs for the
largest possible number of tiles.

Shapes: M tokens, K columns, E experts, C choices of a token, R = M C, N rows of a matrix, T tiles.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor

from dlm.kernels.capability import capability
from dlm.kernels.fused_int8 import block_of, tokens
from dlm.kernels.fused_layers import FEW, ROWS, power

LEAST: Final = (8, 0)
"""Lowest compute capability on which Triton uses tensor cores for integers."""


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Choices sorted by expert, in tiles of one expert each."""

    order: Tensor  # int64 [R], flat index of each sorted choice in [M, C]
    expert: Tensor  # int64 [T]
    begin: Tensor  # int64 [T], first sorted choice
    end: Tensor  # int64 [T], one past the expert's last choice; at most `begin` if empty
    size: int  # most choices of a tile


def tiles(experts: Tensor, count: int) -> Tiles:
    """Tiles of the choices of tokens, int64 [M, C], among `count` experts.

    The host does not wait for the device.
    """
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)
    size = power(min(FEW, len(chosen) // count + 1))
    every = torch.arange(count + 1, device=chosen.device)
    starts = torch.searchsorted(chosen[order], every)
    filled = (starts.diff() + size - 1) // size
    ends = filled.cumsum(0)
    most = min(count, len(chosen)) + len(chosen) // size
    tile = torch.arange(most, device=chosen.device)
    expert = torch.searchsorted(ends, tile, right=True).clamp(max=count - 1)
    begin = starts[expert] + (tile - ends[expert] + filled[expert]) * size
    return Tiles(order, expert, begin, starts[expert + 1], size)


def grouped(x: Tensor, weight: Tensor, scale: Tensor, by: Tiles, each: int = 0) -> Tensor:
    """Products of each choice with the matrix of its expert, float32 [R, N].

    With `each` they are in sorted order; without, in the order of [M, C].

    Args:
        x: tokens [M, K] with `each`; otherwise one input per choice, sorted [R, K].
        weight: int8 [E, N, K], admitted by `fused_int8.fits`.
        scale: float32 [E, N].
        by: tiles of the choices.
        each: C, or 0.
    """
    from dlm.kernels.triton_int8 import int8_grouped_kernel

    rows, columns = weight.shape[1:]
    assert x.shape[1] == columns
    rounded, own = tokens(x)
    out = x.new_empty((len(by.order), rows), dtype=torch.float32)
    with torch.cuda.device_of(x):
        int8_grouped_kernel[(len(by.expert), rows // ROWS)](
            *(rounded, own, by.order, weight, scale),
            *(by.expert, by.begin, by.end, out),
            EACH=each,
            COLUMNS=columns,
            N=rows,
            TOKENS=by.size,
            ROWS=ROWS,
            BLOCK=block_of(columns),
            STAGES=4,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def runs_here() -> bool:
    """Whether all CUDA devices of this machine can run the kernel; true if there are none."""
    if find_spec("triton") is None:
        return False
    found = (capability(index) for index in range(torch.cuda.device_count()))
    return all(each is not None and each >= LEAST for each in found)
