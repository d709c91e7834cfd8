"""Linear layers, and what is made of them, by the products of `dlm.kernels.linear`.

Shapes: D model width, F inner width.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from dlm.kernels import linear as by
from dlm.models.model import untouched

SILU: Final = type(ACT2FN["silu"])


class Linear(nn.Linear):
    """torch's, but that on a CPU a token has the same bits in every batch."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return by.linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): W3 (silu(W1 x) W2 x), [..., D] -> [..., D].

    Reads of the configuration: `hidden_size`, `intermediate_size`, `mlp_bias`, `hidden_act`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return torch.as_tensor(self.down_proj(opened(self, x)))


def opened(mlp: Any, x: Tensor) -> Tensor:
    """silu(W1 x) W2 x, [..., F], of a SwiGLU network's modules and tokens [..., D]."""
    gate, up, activation = mlp.gate_proj, mlp.up_proj, mlp.act_fn
    if is_plain(mlp) and untouched(gate) and untouched(up) and untouched(activation):
        return by.gated(x, gate.weight, up.weight, gate.bias, up.bias)
    return torch.as_tensor(activation(gate(x)) * up(x))


def is_plain(mlp: Any) -> bool:
    """Whether nothing else stands in the place of a SwiGLU network's modules."""
    return type(mlp.gate_proj) is type(mlp.up_proj) is Linear and type(mlp.act_fn) is SILU
