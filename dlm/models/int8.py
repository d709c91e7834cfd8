"""Layers with 8-bit integer weights, see `dlm.kernels.int8`.

Shapes: N tokens, D model width, F expert width, E experts, K experts per token; of a weight,
[..., N, K] with N rows (output channels) and K columns.
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
    """Integer weights, and a float32 scale for each output channel.

    On a CPU, `pack` converts loaded weights and scales to oneDNN's layout. The weight attribute is
    then None, so that memory holds the weight only once. Saving, copying or moving the layer to a
    GPU restores the original layout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, torch.Size] = {}  # of the weights before `pack`
        self.matrices: dict[str, list[int8.Packed]] = {}

    def take(self, name: str, weight: Tensor) -> None:
        """Register a weight [..., N, K] and its scales, which are still to be rounded or loaded."""
        weight = weight.detach()
        self.shapes[name] = weight.shape
        self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        scale = torch.empty(weight.shape[:-1], dtype=torch.float32, device=weight.device)
        self.register_buffer(scale_of(name), scale)

    def round(self) -> None:
        """Round the weights to integers, and pack them on a CPU."""
        for name in self.shapes:
            whole, scale = int8.quantized(getattr(self, name).detach())
            self.hold(name, whole)
            setattr(self, scale_of(name), scale)
        self.pack()

    def pack(self) -> None:
        """Convert integer weights to the layout for products on a CPU, and free the originals.

        Does nothing on a GPU.
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
        """Undo `pack`: restore the weights in their original layout."""
        for name in self.matrices:
            self.hold(name, self.integers(name))
        self.matrices = {}

    def hold(self, name: str, whole: Tensor) -> None:
        """Set a weight, int8 [..., N, K], as a parameter without gradients."""
        setattr(self, name, nn.Parameter(whole, requires_grad=False))

    def integers(self, name: str) -> Tensor:
        """A packed weight in its original layout, int8 [..., N, K]."""
        parts = [int8.unpacked(matrix) for matrix in self.matrices[name]]
        return torch.stack(parts).view(self.shapes[name])

    @property
    def place(self) -> str:
        """The type of the device that holds the weights."""
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
        """The state before `pack`, because oneDNN's layout can be neither copied nor pickled."""
        weights = {name: self.integers(name) for name in self.matrices}
        parameters = {n: nn.Parameter(each, requires_grad=False) for n, each in weights.items()}
        return {**self.__dict__, "matrices": {}, "_parameters": self._parameters | parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and pack the weights again if they are integers."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.is_rounded:
            self.pack()


class Int8Linear(Int8Layer):
    """A linear layer with integer weights, which replaces torch's."""

    weight: Any  # None while packed for a CPU

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a linear layer, whose weight is still to be rounded or loaded."""
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
        """Whether tokens on a GPU use our kernels instead of torch."""
        traced = torch.compiler.is_compiling()
        return not traced and fused_layers.covers(x) and fused_int8.fits(self.weight)

    @property
    def matrix(self) -> int8.Matrix:
        """The weight, its scales and the bias, for products on a GPU."""
        return int8.Matrix(self.weight, getattr(self, scale_of("weight")), self.bias)

    def extra_repr(self) -> str:
        """The sizes of the layer, shown when the network is printed."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Int8Experts(Int8Layer):
    """E SwiGLU networks with integer weights, which replace `Experts`; sequential on a CPU."""

    gate_up_proj: Any  # None while packed for a CPU
    down_proj: Any

    def __init__(self, experts: Experts) -> None:
        """Take over all experts, whose weights are still to be rounded or loaded."""
        super().__init__()
        self.num_experts = experts.num_experts
        self.take("gate_up_proj", experts.gate_up_proj)
        self.take("down_proj", experts.down_proj)
        self.act_fn = experts.act_fn

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k expert_k(x), [N, D], of tokens [N, D] with experts and weights [N, K]."""
        made = (self.laid_out if self.matrices else self.loaded)(x, experts)
        made = made.view(*experts.shape, x.shape[-1])
        return (made * weights[..., None]).sum(1).to(x.dtype)

    def laid_out(self, x: Tensor, experts: Tensor) -> Tensor:
        """The output of each chosen expert of each token, float32 [N K, D], on a CPU."""
        order, counts = by_expert(experts, self.num_experts)
        own = x[order // experts.shape[1]]
        gate, up = int8.grouped(own, self.matrices["gate_up_proj"], counts).chunk(2, -1)
        own = int8.grouped(self.act_fn(gate) * up, self.matrices["down_proj"], counts)
        return torch.empty_like(own).index_copy_(0, order, own)

    def loaded(self, x: Tensor, experts: Tensor) -> Tensor:
        """The same on a GPU, always by our kernels, at which `torch.compile` breaks its graph."""
        by, scales = fused_experts.tiles(experts, self.num_experts), map(scale_of, self.shapes)
        first, second = (getattr(self, scale) for scale in scales)
        made = fused_experts.grouped(x, self.gate_up_proj, first, by, experts.shape[1])
        gate, up = made.chunk(2, -1)
        return fused_experts.grouped(self.act_fn(gate) * up, self.down_proj, second, by)

    def extra_repr(self) -> str:
        """The sizes of the layer, shown when the network is printed."""
        return f"{self.num_experts}, {', '.join(map(str, self.shapes['down_proj'][1:]))}"


KINDS: dict[type[nn.Module], Callable[[Any], Int8Layer]] = {
    nn.Linear: Int8Linear,
    Linear: Int8Linear,
    Experts: Int8Experts,
}
"""The integer layer that replaces each class of layer."""


def scale_of(name: str) -> str:
    """The name of a weight's scales.

    transformers 5.17 would split `gate_up_proj_scale` by expert, as it does `gate_up_proj`.
    """
    return f"scale_of_{name}"


def chosen(network: Any, skipped: Sequence[str]) -> list[str]:
    """The names of the layers to quantise.

    Args:
        network: a network of transformers; layers with tied weights are left out.
        skipped: patterns of further names to leave out, as transformers' `modules_to_not_convert`.
    """
    tied = network.all_tied_weights_keys
    shared = {name.removesuffix(".weight") for name in (*tied.keys(), *tied.values())}
    names = [name for name in candidates(network) if name not in shared]
    return [name for name in names if should_convert_module(name, [*skipped])]


def replace(network: Any, names: Sequence[str]) -> None:
    """Replace the named linear layers and experts by integer layers, still to be rounded."""
    for name in names:
        path, _, own = name.rpartition(".")
        parent, layer = network.get_submodule(path), network.get_submodule(name)
        setattr(parent, own, KINDS[type(layer)](layer))


def check_place(name: str, layer: Any, place: str) -> None:
    """Reject a layer that cannot multiply integers on a type of device.

    Args:
        name: of the layer, or of its weight.
        layer: an integer layer, or one that is to become one.
        place: the type of device; "auto" if it is not known yet, which passes.

    Raises:
        ValueError: the type is neither "cpu" nor "cuda", or the sizes or the GPU do not fit.
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
    """Rows and columns of each matrix of a layer, before or after quantisation."""
    if isinstance(layer, Int8Layer):
        return [shape[-2:] for shape in layer.shapes.values()]
    if isinstance(layer, Experts):
        return [layer.gate_up_proj.shape[-2:], layer.down_proj.shape[-2:]]
    return [layer.weight.shape]


def check_move(network: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Reject moving a network to a device that an integer layer does not support.

    It is called before anything is moved.

    Args:
        network: a network, with or without integer layers.
        fn: the function that moves each tensor.

    Raises:
        ValueError: a layer cannot be moved.
    """
    layers = layers_of(network)
    target = fn(torch.empty(0, device="cpu")).device.type if layers else "cpu"
    for name, layer in layers.items():
        if layer.matrices and target != "meta":
            check_place(name, layer, target)


def check_skipped(network: nn.Module, skipped: Sequence[str]) -> None:
    """Reject patterns of names that match no layer.

    Raises:
        ValueError: a pattern matches none.
    """
    names = candidates(network)
    own = {name.rpartition(".")[2] for name in names}
    for pattern in skipped:
        if all(should_convert_module(name, [pattern]) for name in names):
            known("pattern of modules_to_not_convert", pattern, own)


def candidates(network: nn.Module) -> list[str]:
    """The names of all layers of a class that can be quantised."""
    return [name for name, module in network.named_modules() if type(module) in KINDS]


def refuse_quantized(network: Any, what: str) -> None:
    """Reject an operation that needs the original weights.

    Args:
        network: the network.
        what: the operation, for the message.

    Raises:
        ValueError: the network has integer layers.
    """
    if layers_of(network):
        raise ValueError(
            f"{what} needs weights that are not quantized, and those of this model are 8-bit "
            "integers: start from the checkpoint that they were made of"
        )


def layers_of(network: nn.Module) -> dict[str, Int8Layer]:
    """The integer layers of a network, by name."""
    named = network.named_modules()
    return {name: module for name, module in named if isinstance(module, Int8Layer)}
