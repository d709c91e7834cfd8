"""Linear layers and the SwiGLU MLP, computed by the products of `dlm.kernels.linear`.

Shapes: D model width, F inner width.
"""

from typing import Final

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from dlm.kernels import linear as by
from dlm.models.model import untouched

SILU: Final = type(ACT2FN["silu"])


class Linear(nn.Linear):
    """A linear layer that, on a CPU, gives a token the same bits in every batch."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return by.linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): W3 (silu(W1 x) W2 x), [..., D] -> [..., D]."""

    def __init__(self, width: int, inner: int, activation: str, *, bias: bool = False) -> None:
        """Build the layers.

        Args:
            width: D.
            inner: F.
            activation: transformers' name of the activation.
            bias: whether the three layers have biases.
        """
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return torch.as_tensor(self.down_proj(self.opened(x)))

    def opened(self, x: Tensor) -> Tensor:
        """silu(W1 x) W2 x, [..., D] -> [..., F]."""
        gate, up, activation = self.gate_proj, self.up_proj, self.act_fn
        if self.is_plain and untouched(gate) and untouched(up) and untouched(activation):
            return by.gated(x, gate.weight, up.weight, gate.bias, up.bias)
        return torch.as_tensor(activation(gate(x)) * up(x))

    @property
    def is_plain(self) -> bool:
        """Whether the projections and the activation of the gate have not been replaced."""
        return type(self.gate_proj) is type(self.up_proj) is Linear and type(self.act_fn) is SILU
