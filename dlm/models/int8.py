"""Layers whose weights are 8-bit integers: see `dlm.kernels.int8`.

Shapes: N tokens, D model width, F expert width, E experts, K experts of a token.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from dlm.kernels import fused_experts, fused_int8, fused_layers, int8
from dlm.kernels.layers import whole
from dlm.models.buffers import WideBuffers
from dlm.models.experts import Experts, by_expert
from dlm.models.linear import Linear
from dlm.options import known


class Int8Layer(WideBuffers):
    """Weights as integers, and their scales, float32 by output channel.

    What is loaded into the weights and their scales is laid out anew by `pack` on a CPU. From then
    on a weight is None: it is held once. What is saved, copied or moved to a GPU has it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, torch.Size] = {}  # of weights, as they are loaded
        self.matrices: dict[str, list[int8.Packed]] = {}

    def take(self, name: str, weight: Tensor) -> None:
        """Have a weight [..., N, K] of this name, to be rounded or loaded."""
        weight = weight.detach()
        self.shapes[name] = weight.shape
        self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        scale = torch.empty(weight.shape[:-1], dtype=torch.float32, device=weight.device)
        self.register_buffer(scale_of(name), scale)

    def round(self) -> None:
        """Round the weights to integers, and lay them out."""
        for name in self.shapes:
            whole, scale = int8.quantized(getattr(self, name).detach())
            self.hold(name, whole)
            setattr(self, scale_of(name), scale)
        self.pack()

    def pack(self) -> None:
        """Lay the weights out for products, integers by now, and let go of them as they were.

        On a GPU they stay as they are.
        """
        if self.place != "cpu":
            return
        for name in self.shapes:
            rows, columns = self.shapes[name][-2:]
            weights = getattr(self, name).detach().view(-1, rows, columns)
            scales = getattr(self, scale_of(name)).view(-1, rows)
            pairs = zip(weights, scales, strict=True)
            self.matrices[name] = [int8.packed(*pair) for pair in pairs]
            setattr(self, name, None)

    def unpack(self) -> None:
        """Have the weights as they were before `pack`."""
        for name in self.matrices:
            self.hold(name, self.integers(name))
        self.matrices = {}

    def hold(self, name: str, whole: Tensor) -> None:
        """Have a weight of integers, int8 [..., N, K], as a parameter."""
        setattr(self, name, nn.Parameter(whole, requires_grad=False))

    def integers(self, name: str) -> Tensor:
        """A weight, int8 [..., N, K]."""
        parts = [int8.unpacked(matrix) for matrix in self.matrices[name]]
        return torch.stack(parts).view(self.shapes[name])

    @property
    def place(self) -> str:
        """The type of the device that the weights are on."""
        weight = getattr(self, next(iter(self.shapes)))
        return "cpu" if weight is None else str(weight.device.type)

    @property
    def is_rounded(self) -> bool:
        """Whether all weights are integers."""
        held = (getattr(self, name) for name in self.shapes)
        return bool(self.matrices) or all(weight.dtype == torch.int8 for weight in held)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        target = fn(torch.empty(0, device="cpu")).device.type
        if self.matrices and target != "cpu":
            if target != "meta":
                check_place("a layer", self, target)
            self.unpack()
        before = self.place
        super()._apply(fn, recurse)
        if before != "cpu" and self.is_rounded:
            self.pack()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: self.integers(name) for name in self.matrices})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *told: Any) -> None:
        rounded = self.is_rounded
        self.unpack()
        for name in self.shapes:
            given = state_dict.get(prefix + name)
            if rounded and given is not None and given.dtype != torch.int8:
                told[-1].append(f"{prefix}{name} must be int8, got {given.dtype}")
                state_dict = {key: each for key, each in state_dict.items() if key != prefix + name}
        super()._load_from_state_dict(state_dict, prefix, *told)
        if rounded:
            self.pack()

    def __getstate__(self) -> dict[str, Any]:
        """As before `pack`: what oneDNN lays out can be neither copied nor pickled."""
        weights = {name: self.integers(name) for name in self.matrices}
        parameters = {n: nn.Parameter(each, requires_grad=False) for n, each in weights.items()}
        return {**self.__dict__, "matrices": {}, "_parameters": self._parameters | parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As after `pack`, where that was done."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.is_rounded:
            self.pack()


class Int8Linear(Int8Layer):
    """A linear layer in the place of torch's."""

    weight: Any  # None where it is laid out for a CPU

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a layer, whose weight is still to be rounded or loaded."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.take("weight", linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        tokens = x.reshape(-1, self.in_features)
        if self.matrices:
            made = int8.product(tokens, self.matrices["weight"][0], self.bias)
        elif self.by_kernel(x):
            made = whole(fused_int8.product(tokens, [self.matrix]), x.dtype)
        else:
            made = int8.product_unpacked(tokens, self.matrix)
        return made.view(*x.shape[:-1], self.out_features)

    def by_kernel(self, x: Tensor) -> bool:
        """Whether tokens on a GPU are multiplied by kernels, and not by torch."""
        traced = torch.compiler.is_compiling()
        return not traced and fused_layers.covers(x) and fused_int8.fits(self.weight)

    @property
    def matrix(self) -> int8.Matrix:
        """What it multiplies by, on a GPU."""
        return int8.Matrix(self.weight, getattr(self, scale_of("weight")), self.bias)

    def extra_repr(self) -> str:
        """Its sizes, where the network is printed."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Int8Experts(Int8Layer):
    """E SwiGLU networks in the place of `Experts`: on a CPU one after the other."""

    gate_up_proj: Any  # None where they are laid out for a CPU
    down_proj: Any

    def __init__(self, experts: Experts) -> None:
        """Take over all experts, whose weights are still to be rounded or loaded."""
        super().__init__()
        self.num_experts = experts.num_experts
        self.take("gate_up_proj", experts.gate_up_proj)
        self.take("down_proj", experts.down_proj)
        self.act_fn = experts.act_fn

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k expert_k(x) [N, D] of tokens [N, D], both [N, K]."""
        made = (self.laid_out if self.matrices else self.loaded)(x, experts)
        made = made.view(*experts.shape, x.shape[-1])
        return (made * weights[..., None]).sum(1).to(x.dtype)

    def laid_out(self, x: Tensor, experts: Tensor) -> Tensor:
        """What each choice of a token gives, float32 [N K, D], on a CPU."""
        order, counts = by_expert(experts, self.num_experts)
        own = x[order // experts.shape[1]]
        gate, up = int8.grouped(own, self.matrices["gate_up_proj"], counts).chunk(2, -1)
        own = int8.grouped(self.act_fn(gate) * up, self.matrices["down_proj"], counts)
        return torch.empty_like(own).index_copy_(0, order, own)

    def loaded(self, x: Tensor, experts: Tensor) -> Tensor:
        """The same on a GPU, by kernels alone: `torch.compile` breaks its graph here."""
        by, scales = fused_experts.tiles(experts, self.num_experts), map(scale_of, self.shapes)
        first, second = (getattr(self, scale) for scale in scales)
        made = fused_experts.grouped(x, self.gate_up_proj, first, by, experts.shape[1])
        gate, up = made.chunk(2, -1)
        return fused_experts.grouped(self.act_fn(gate) * up, self.down_proj, second, by)

    def extra_repr(self) -> str:
        """Its sizes, where the network is printed."""
        return f"{self.num_experts}, {', '.join(map(str, self.shapes['down_proj'][1:]))}"


KINDS: dict[type[nn.Module], Callable[[Any], Int8Layer]] = {
    nn.Linear: Int8Linear,
    Linear: Int8Linear,
    Experts: Int8Experts,
}
"""What takes the place of what."""


def scale_of(name: str) -> str:
    """What the scales of a weight are called.

    transformers 5.17 would take `gate_up_proj_scale` apart by expert, as it does `gate_up_proj`.
    """
    return f"scale_of_{name}"


def chosen(network: Any, skipped: Sequence[str]) -> list[str]:
    """Names of the layers to round.

    Args:
        network: of transformers; layers whose weights are tied to others stay as they are.
        skipped: patterns of names that stay, too, as `modules_to_not_convert` of transformers.
    """
    tied = network.all_tied_weights_keys
    shared = {name.removesuffix(".weight") for name in (*tied.keys(), *tied.values())}
    names = [name for name in candidates(network) if name not in shared]
    return [name for name in names if should_convert_module(name, [*skipped])]


def replace(network: Any, names: Sequence[str]) -> None:
    """Put layers of integers in the place of linear ones and of experts."""
    for name in names:
        path, _, own = name.rpartition(".")
        parent, layer = network.get_submodule(path), network.get_submodule(name)
        setattr(parent, own, KINDS[type(layer)](layer))


def check_place(name: str, layer: Any, place: str) -> None:
    """Refuse a layer whose products in integers torch does not have on a type of device.

    Args:
        name: of the layer, or of its weight.
        layer: to be rounded, or of integers.
        place: the type; anything that is none is known later.

    Raises:
        ValueError: it has none there.
    """
    if place in ("cpu", "auto"):
        return
    if place != "cuda":
        raise ValueError(f"W8A8Config is for a CPU or for GPUs, got {name} on {place!r}")
    one_by_one = isinstance(layer, Experts | Int8Experts)
    least = fused_layers.ROWS if one_by_one else int8.MULTIPLE
    for rows, columns in sizes_of(layer):
        if rows % least or columns % least:
            raise ValueError(
                f"the sizes of a layer of 8-bit integers must be multiples of {least} on a GPU, "
                f"got {[rows, columns]} of {name}: name it in modules_to_not_convert"
            )
        int8.check_width(columns)
    if one_by_one and not fused_experts.runs_here():
        needed = ".".join(map(str, fused_experts.LEAST))
        raise ValueError(
            "experts in 8-bit integers need triton on a GPU, and one of compute capability "
            f"{needed} or more, got {name}: name them in modules_to_not_convert"
        )


def sizes_of(layer: Any) -> list[torch.Size]:
    """Rows and columns of the matrices of a layer, to be rounded or of integers."""
    if isinstance(layer, Int8Layer):
        return [shape[-2:] for shape in layer.shapes.values()]
    if isinstance(layer, Experts):
        return [layer.gate_up_proj.shape[-2:], layer.down_proj.shape[-2:]]
    return [layer.weight.shape]


def check_move(network: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuse to move a network of which a layer cannot follow, before anything is moved.

    Args:
        network: some of its layers may be of integers.
        fn: what is done to each of its tensors.

    Raises:
        ValueError: there is such a layer.
    """
    layers = layers_of(network)
    target = fn(torch.empty(0, device="cpu")).device.type if layers else "cpu"
    for name, layer in layers.items():
        if layer.matrices and target != "meta":
            check_place(name, layer, target)


def check_skipped(network: nn.Module, skipped: Sequence[str]) -> None:
    """Refuse a pattern of names that stands for no layer.

    Raises:
        ValueError: there is one.
    """
    names = candidates(network)
    own = {name.rpartition(".")[2] for name in names}
    for pattern in skipped:
        if all(should_convert_module(name, [pattern]) for name in names):
            known("pattern of modules_to_not_convert", pattern, own)


def candidates(network: nn.Module) -> list[str]:
    """Names of all layers of the kinds that can be rounded."""
    return [name for name, module in network.named_modules() if type(module) in KINDS]


def refuse_quantized(network: Any, what: str) -> None:
    """Refuse what needs the weights as they were.

    Raises:
        ValueError: there are layers of integers.
    """
    if layers_of(network):
        raise ValueError(
            f"{what} needs weights that are not quantized, and those of this model are 8-bit "
            "integers: start from the checkpoint that they were made of"
        )


def layers_of(network: nn.Module) -> dict[str, Int8Layer]:
    """Layers of a network whose weights are integers, by name."""
    named = network.named_modules()
    return {name: module for name, module in named if isinstance(module, Int8Layer)}
