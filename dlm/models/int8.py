"""Layers whose weights are 8-bit integers, for a CPU: see `dlm.kernels.int8`.

Shapes: N tokens, D model width, F expert width, E experts, K experts of a token.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from dlm.kernels import int8
from dlm.models.buffers import WideBuffers
from dlm.models.experts import Experts

SCALE = "_scale"  # behind a weight's name: its scales


class Int8Layer(WideBuffers):
    """Weights as integers, and their scales, float32 by output channel.

    What is loaded into the weights and `<weight>_scale` is laid out anew by `pack`. From then on a
    weight is None: it is held once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, torch.Size] = {}  # of weights, as they are loaded
        self.matrices: dict[str, list[int8.Packed]] = {}

    def take(self, name: str, weight: Tensor, rounded: bool) -> None:
        """Have a weight [..., N, K] of this name; `rounded` where integers will be loaded."""
        weight = weight.detach()
        whole = weight.to(torch.int8) if rounded else weight
        self.shapes[name] = weight.shape
        self.register_parameter(name, nn.Parameter(whole, requires_grad=False))
        scale = torch.empty(weight.shape[:-1], dtype=torch.float32, device=weight.device)
        self.register_buffer(name + SCALE, scale)

    def round(self) -> None:
        """Round the weights to integers, and lay them out."""
        for name in self.shapes:
            whole, scale = int8.quantized(getattr(self, name).detach())
            setattr(self, name, nn.Parameter(whole, requires_grad=False))
            setattr(self, name + SCALE, scale)
        self.pack()

    def pack(self) -> None:
        """Lay the weights out for products, integers by now, and let go of them as they were."""
        for name in self.shapes:
            rows, columns = self.shapes[name][-2:]
            weights = getattr(self, name).detach().view(-1, rows, columns)
            scales = getattr(self, name + SCALE).view(-1, rows)
            pairs = zip(weights, scales, strict=True)
            self.matrices[name] = [int8.packed(*pair) for pair in pairs]
            setattr(self, name, None)

    def integers(self, name: str) -> Tensor:
        """A weight, int8 [..., N, K]."""
        parts = [int8.unpacked(matrix) for matrix in self.matrices[name]]
        return torch.stack(parts).view(self.shapes[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.matrices and fn(torch.empty(0)).device.type != "cpu":
            raise ValueError("weights in 8-bit integers (W8A8Config) stay on the CPU")
        return super()._apply(fn, recurse)


class Int8Linear(Int8Layer):
    """A linear layer in the place of torch's."""

    def __init__(self, linear: nn.Linear, *, rounded: bool = False) -> None:
        """Take over a layer; `rounded` where integers will be loaded."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.take("weight", linear.weight, rounded)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        made = int8.product(x.flatten(0, -2), self.matrices["weight"][0], self.bias)
        return made.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Its sizes, where the network is printed."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Int8Experts(Int8Layer):
    """E SwiGLU networks in the place of `Experts`, one after the other."""

    def __init__(self, experts: Experts, *, rounded: bool = False) -> None:
        """Take over all experts; `rounded` where integers will be loaded."""
        super().__init__()
        self.num_experts = experts.num_experts
        self.take("gate_up_proj", experts.gate_up_proj, rounded)
        self.take("down_proj", experts.down_proj, rounded)
        self.act_fn = experts.act_fn

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k expert_k(x) [N, D] of tokens [N, D], both [N, K]."""
        order = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=self.num_experts).tolist()
        own = x[order // experts.shape[1]]
        gate, up = int8.grouped(own, self.matrices["gate_up_proj"], counts).chunk(2, -1)
        own = int8.grouped(self.act_fn(gate) * up, self.matrices["down_proj"], counts)
        made = torch.empty_like(own).index_copy_(0, order, own).view(*experts.shape, -1)
        return (made * weights[..., None]).sum(1).to(x.dtype)

    def extra_repr(self) -> str:
        """Its sizes, where the network is printed."""
        return f"{self.num_experts}, {', '.join(map(str, self.shapes['down_proj'][1:]))}"


KINDS: dict[type[nn.Module], type[Int8Layer]] = {nn.Linear: Int8Linear, Experts: Int8Experts}
"""What takes the place of what."""


def replace(network: Any, skipped: Iterable[str], *, rounded: bool) -> None:
    """Put layers of integers in the place of all that `places` finds."""
    for parent, name, kind in list(places(network, skipped)):
        setattr(parent, name, kind(getattr(parent, name), rounded=rounded))


def places(
    network: Any, skipped: Iterable[str]
) -> Iterator[tuple[nn.Module, str, Callable[..., Int8Layer]]]:
    """Layers that can be rounded: each as its parent, its name there, and what takes its place.

    Args:
        network: of transformers; layers whose weights are tied to others are left out.
        skipped: patterns of names to leave out, as `modules_to_not_convert` of transformers.
    """
    tied = network.all_tied_weights_keys
    weights, patterns = {*tied.keys(), *tied.values()}, [*skipped]
    for path, parent in network.named_modules():
        for name, child in parent.named_children():
            whole = f"{path}.{name}" if path else name
            if type(child) not in KINDS or f"{whole}.weight" in weights:
                continue
            if should_convert_module(whole, patterns):
                yield parent, name, KINDS[type(child)]


def layers_of(network: nn.Module) -> dict[str, Int8Layer]:
    """Layers of a network whose weights are integers, by name."""
    named = network.named_modules()
    return {name: module for name, module in named if isinstance(module, Int8Layer)}
