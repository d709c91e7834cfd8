"""Networks of given shapes, with random weights created in memory.

All of them have the LLaDA layout. `dream-7b` is a LLaDA network of that size: Dream's own network
has biases on query, key and value and shifts its logits, neither of which matters for time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dlm.models.loading import check_dtype
from dlm.models.model import Model
from dlm.models.placement import check_device
from dlm.models.spec import ModelSpec
from dlm.options import integer, known

if TYPE_CHECKING:
    from dlm.models.transformer import TransformerForMaskedLM


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp_width: int
    vocabulary: int
    max_length: int
    rope_theta: float
    tied: bool = False  # whether embedding and projection share their weights


SHAPES = {
    "llada-8b": Shape(4096, 32, 32, 32, 12288, 126464, 4096, 500000.0),
    "dream-7b": Shape(3584, 28, 28, 4, 18944, 152064, 131072, 1000000.0),
    "25m": Shape(512, 6, 8, 8, 1344, 8192, 4096, 10000.0),
    "tiny": Shape(128, 5, 4, 4, 352, 768, 512, 10000.0, tied=True),
}


def shape_of(name: str, layers: int | None = None) -> Shape:
    """A shape by name, optionally with another number of layers.

    Raises:
        ValueError: the name is unknown, or the number of layers is not an int >= 1.
    """
    shape = SHAPES[known("shape", name, SHAPES)]
    if layers is None:
        return shape
    parts = {f: getattr(shape, f) for f in Shape.__slots__}
    return Shape(**parts | {"layers": integer("layers", layers, least=1)})


def default_dtype(device: torch.device) -> torch.dtype:
    """The fast dtype: bfloat16, but float32 on a CPU, as most CPUs have no unit for less."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def build(shape: Shape, device: str | None = None, dtype: str = "auto", seed: int = 0) -> Model:
    """A network with random weights and no tokenizer; only the mask token is never sampled.

    The network is created on the meta device and allocated only once its dtype is known.
    """
    target = check_device(device)
    kind = check_dtype(dtype)
    network: Any = empty_network(shape)
    network.to(default_dtype(target) if isinstance(kind, str) else kind)
    network.to_empty(device=target)
    network.tie_weights()
    fill(network, seed)
    network.requires_grad_(False)
    last = shape.vocabulary
    spec = ModelSpec(
        family="llada",
        vocab_size=last,
        mask_id=last - 1,
        eos_id=last - 2,
        stop_ids=(last - 2,),
        max_length=shape.max_length,
        unused=(last, last),
    )
    return Model(network.eval(), None, spec)


def empty_network(shape: Shape) -> "TransformerForMaskedLM":
    """The network on the meta device."""
    from dlm.models.configs import LladaConfig
    from dlm.models.llada import LLaDAModelLM

    config = LladaConfig(
        d_model=shape.width,
        n_layers=shape.layers,
        n_heads=shape.heads,
        n_kv_heads=shape.key_value_heads,
        mlp_hidden_size=shape.mlp_width,
        vocab_size=shape.vocabulary,
        max_sequence_length=shape.max_length,
        rope_theta=shape.rope_theta,
        weight_tying=shape.tied,
        mask_token_id=shape.vocabulary - 1,
        eos_token_id=shape.vocabulary - 2,
        pad_token_id=shape.vocabulary - 2,
    )
    with torch.device("meta"):
        network = LLaDAModelLM(config)
    network.set_attn_implementation("sdpa")
    return network


def fill(network: Any, seed: int) -> None:
    """Fill matrices with variance 1 / columns, so that logits differ, and norms with ones."""
    from dlm.models.rotary import RotaryEmbedding

    device = network.model.embed_tokens.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    rotary = network.model.rotary_emb
    rotary.inv_freq = RotaryEmbedding.frequencies(network.config).to(device)
