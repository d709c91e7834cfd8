"""Linear layers in 8-bit integers, for a CPU.

Shapes: K columns, N rows of the weights.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from dlm.kernels import int8
from dlm.models.buffers import WideBuffers


class Int8Linear(WideBuffers):
    """A linear layer by `dlm.kernels.int8`, in the place of torch's.

    `pack` lays out anew what was loaded into `weight` and `weight_scale`. From then on there is no
    `weight`: the layer holds it once.
    """

    weight_scale: Tensor

    def __init__(self, linear: nn.Linear, *, rounded: bool = False) -> None:
        """Take over a layer's sizes, bias and weight; `rounded` where integers will be loaded."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.weight: Tensor | None = nn.Parameter(
            weight.to(torch.int8) if rounded else weight, requires_grad=False
        )
        self.bias = linear.bias
        scale = torch.empty(self.out_features, dtype=torch.float32, device=weight.device)
        self.register_buffer("weight_scale", scale)
        self.packed: int8.Packed | None = None

    def round(self) -> None:
        """Round the weight to integers, and lay it out."""
        assert self.weight is not None
        whole, self.weight_scale = int8.quantized(self.weight.detach())
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.pack()

    def pack(self) -> None:
        """Lay the weight out for products, int8 [N, K] by now, and let go of it as it was."""
        assert self.weight is not None
        self.packed = int8.packed(self.weight.detach(), self.weight_scale)
        self.weight = None

    def integers(self) -> Tensor:
        """The weight, int8 [N, K]."""
        assert self.packed is not None
        return int8.unpacked(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        assert self.packed is not None
        tokens = int8.product(x.flatten(0, -2), self.packed, self.bias)
        return tokens.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Its sizes, where the network is printed."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.packed is not None and fn(torch.empty(0)).device.type != "cpu":
            raise ValueError("weights in 8-bit integers (W8A8Config) stay on the CPU")
        return super()._apply(fn, recurse)


def linear_layers(network: Any, skipped: Iterable[str]) -> Iterator[tuple[nn.Module, str]]:
    """Linear layers of a network, each as its parent and its name there.

    Args:
        network: of transformers; layers whose weights are tied to others are left out.
        skipped: patterns of names to leave out, as `modules_to_not_convert` of transformers.
    """
    tied = network.all_tied_weights_keys
    weights, patterns = {*tied.keys(), *tied.values()}, [*skipped]
    for path, parent in list(network.named_modules()):
        for name, child in list(parent.named_children()):
            whole = f"{path}.{name}" if path else name
            if type(child) is not nn.Linear or f"{whole}.weight" in weights:
                continue
            if should_convert_module(whole, patterns):
                yield parent, name
