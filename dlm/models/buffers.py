"""Buffers that stay exact in a network of a narrow dtype."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module whose own buffers stay in float32 or wider, as loading in a narrow dtype has them.

    `network.to(torch.bfloat16)` and `network.half()` cast every floating buffer. Rotary frequencies
    in bfloat16 turn far positions by other angles, and a router's bias chooses other experts.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype.itemsize < torch.float32.itemsize:
                self._buffers[name] = before[name].to(buffer.device)
        return self
