"""Buffers that keep float32 in a network of half precision."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module whose own buffers stay in float32 or wider when the network is cast.

    `network.to(torch.bfloat16)` and `network.half()` cast every floating buffer. In bfloat16,
    rotary frequencies give late positions wrong angles, and a router's bias selects other experts.
    Loading in half precision keeps these buffers in float32, and so does this class.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype.itemsize < torch.float32.itemsize:
                self._buffers[name] = before[name].to(buffer.device)
        return self
