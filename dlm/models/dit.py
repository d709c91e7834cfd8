"""MDLM (Sahoo et al. 2024, arXiv:2406.07524) and BD3LM (Arriola et al. 2025, arXiv:2503.09573).

Both are diffusion transformers (Peebles and Xie 2023, arXiv:2212.09748) over tokens: a linear map
of the noise level's embedding scales and shifts every norm, and gates every branch. The releases
are not conditioned on the noise level: their networks always see 0. Modules have the names of the
released weights.

Logits are raw. The engine applies what the papers put on top of them (SUBS: the mask token has
probability 0, and unmasked tokens stay): `ModelSpec.banned` contains the mask token, and decoders
change only masked positions.

Shapes: B rows, L tokens, D model width, H heads, E head width, C width of the conditioning,
V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MaskedLMOutput

from dlm.cache import View
from dlm.huggingface.generation import DiffusionGenerationMixin
from dlm.kernels import linear as by
from dlm.kernels.layers import turn
from dlm.models.attention import attention, mask_of
from dlm.models.buffers import WideBuffers
from dlm.models.dit_configs import Bd3lmConfig, DitConfig, MdlmConfig
from dlm.models.linear import Linear
from dlm.models.model import untouched
from dlm.models.outputs import keeps_states, masked_loss, output

ROPE_THETA = 10000.0
TIME_FEATURES = 256  # sines and cosines that embed the noise level
NORM_EPS = 1e-5


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Embedding(nn.Module):
    """An embedding as a bare parameter, as released; transformers reads it as `weight`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        return self.embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, L, D]."""
        return self.embedding[tokens]


class ZeroLinear(Linear):
    """A linear map with zero weights at initialisation, so that gated branches start at 0."""


class RotaryEmbedding(WideBuffers):
    """Angles of rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.inv_freq = nn.Buffer(self.frequencies(width))

    @staticmethod
    def frequencies(width: int) -> Tensor:
        """theta^(-2i/E), float32 [E/2]."""
        return 1.0 / ROPE_THETA ** (torch.arange(0, width, 2, dtype=torch.float32) / width)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, 1, L, E], float32 or wider, at int64 positions [B, L]."""
        frequencies = at_least_float32(self.inv_freq)
        angle = positions[:, None, :, None].to(frequencies.dtype) * frequencies
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()


class NoiseLevel(nn.Module):
    """Embedding of the noise level, which is always 0, as in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self) -> Tensor:
        """The embedding [1, C]."""
        like = next(each for each in self.mlp.parameters() if each.is_floating_point())
        half = TIME_FEATURES // 2
        # Cosines, then sines, of frequency times level: 1 and 0, because the level is 0.
        features = torch.cat((like.new_ones(1, half), like.new_zeros(1, half)), -1)
        return F.silu(self.mlp(features))


class Norm(nn.Module):
    """LayerNorm without bias, computed in float32 or wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) (1 + scale) + shift, [B, L, D] in the dtype of `x`."""
        wide = at_least_float32(x)
        normal = F.layer_norm(wide, self.weight.shape, eps=NORM_EPS) * self.weight
        return (normal * (1 + at_least_float32(scale)) + shift).to(x.dtype)


class Mlp(nn.Sequential):
    """W2 gelu(W1 x), [..., D] -> [..., D]."""

    def __init__(self, width: int) -> None:
        activation = nn.GELU(approximate="tanh")
        super().__init__(Linear(width, 4 * width), activation, Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        first, activation, last = self
        tanh = type(activation) is nn.GELU and activation.approximate == "tanh"
        if tanh and type(first) is Linear and untouched(first) and untouched(activation):
            return torch.as_tensor(last(by.linear(x, first.weight, first.bias, "gelu_tanh")))
        return torch.as_tensor(last(activation(first(x))))


class Block(GradientCheckpointingLayer):
    """Gated attention and a gated MLP, each after a norm that the noise level modulates."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.config = config
        self.layer_idx = layer
        self.head_dim = width // config.n_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.norm1 = Norm(width)
        self.attn_qkv = Linear(width, 3 * width, bias=False)
        self.attn_out = Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = Mlp(width)
        self.adaLN_modulation = ZeroLinear(config.cond_dim, 6 * width)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: View | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D], given the noise level's embedding [1, C]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(level)[:, None].chunk(
            6, -1
        )
        x = x + gate1 * self.drop(self.attend(self.norm1(x, shift1, scale1), angles, mask, cache))
        return torch.as_tensor(x + gate2 * self.drop(self.mlp(self.norm2(x, shift2, scale2))))

    def attend(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: View | None,
    ) -> Tensor:
        """Multi-head attention, [B, L, D] -> [B, L, D]."""
        query, key, value = rearrange(
            self.attn_qkv(x), "b l (three h e) -> three b h l e", three=3, e=self.head_dim
        )
        query, key = turn(query, *angles), turn(key, *angles)
        out = attention(self, query, key, value, mask, cache)
        return torch.as_tensor(self.attn_out(rearrange(out, "b l h e -> b l (h e)")))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, only in training."""
        return F.dropout(x, self.config.dropout, self.training)


class OutputLayer(nn.Module):
    """Modulated norm and vocabulary projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_final = Norm(config.hidden_dim)
        self.linear = ZeroLinear(config.hidden_dim, config.vocab_size)
        self.adaLN_modulation = ZeroLinear(config.cond_dim, 2 * config.hidden_dim)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D], given the noise level's embedding [1, C]."""
        shift, scale = self.adaLN_modulation(level)[0].chunk(2, -1)
        return torch.as_tensor(self.linear(self.norm_final(x, shift, scale)))


class Backbone(nn.Module):
    """The network itself; `Dit` around it adds loading, saving and the loss."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = NoiseLevel(config.cond_dim)
        self.rotary_emb = RotaryEmbedding(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_blocks))
        self.output_layer = OutputLayer(config)


class Dit(DiffusionGenerationMixin, PreTrainedModel):
    """A diffusion transformer over tokens."""

    packs_rows: ClassVar[bool] = True
    accepts_loss_kwargs: ClassVar[bool] = True  # Trainer then counts labels over accumulated steps
    base_model_prefix = ""
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads a plain list)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    # In bfloat16, late positions are off by whole turns, and a rate of 0.999 becomes 1.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "inv_freq",
        "sampling_eps_max",
        "sampling_eps_min",
    ]
    # The releases contain these, but they follow from the configuration.
    _keys_to_ignore_on_load_missing = [r"inv_freq$", r"sampling_eps_m"]  # noqa: RUF012

    def __init__(self, config: DitConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, RotaryEmbedding):
            initialization.copy_(module.inv_freq, RotaryEmbedding.frequencies(module.width))
        elif isinstance(module, Embedding):
            initialization.kaiming_uniform_(module.embedding, a=math.sqrt(5))
        elif isinstance(module, Norm):
            initialization.ones_(module.weight)
        elif isinstance(module, ZeroLinear):
            initialization.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """The module whose `weight` is the embedding."""
        return self.backbone.vocab_embed

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection, which is never tied."""
        return self.backbone.output_layer.linear

    def forward(  # noqa: PLR0913 (what transformers hands to every network)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Raw logits [B, L, V] of the token at each position, and the loss of `labels`.

        Attention is bidirectional. For BD3LM's block-causal attention a mask has to be given;
        `dlm.models.model.Model` does that. The output is a `MaskedLMOutput` whatever the released
        configuration's `return_dict` is, because that was written for the official code.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding, which nothing attends to; or a 4-D mask in the
                attention backend's own form.
            position_ids: int64 [B or 1, L]; by default the column index.
            inputs_embeds: [B, L, D] instead of `input_ids`.
            labels: integer [B, L], -100 for no loss, see `dlm.models.outputs.masked_loss`.
            output_hidden_states: also return the embeddings and the output of every block; by
                default as in the configuration.
            output_attentions: unsupported; True is an error.
            use_cache: unsupported; True is an error.
            return_dict: False returns a tuple; otherwise the output is a `MaskedLMOutput`.
            num_items_in_batch: divisor of the loss; by default the number of labels in the batch.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given, or an
                unsupported output is requested.
        """
        keep = keeps_states(self.config, output_hidden_states, output_attentions, use_cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.backbone.vocab_embed(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        # Unless all hidden states are requested, only one is kept in memory at a time.
        states = deque(self.through(x, attention_mask, position_ids), None if keep else 1)
        logits = self.project(states[-1])
        loss = masked_loss(self.config, logits, labels, attention_mask, num_items_in_batch)
        return output(loss, logits, states if keep else None, return_dict is not False)

    def states(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Tensor:
        """Output of the last block [B, L, D], see `dlm.models.model.Network`."""
        x = self.backbone.vocab_embed(tokens)
        return deque(self.through(x, attention_mask, positions, cache), maxlen=1)[0]

    def through(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Iterator[Tensor]:
        """Embeddings, then the output of each block, [B, L, D] each."""
        yield x
        mask = mask_of(self.config, x, attention_mask)
        level = self.backbone.sigma_map()
        angles = self.backbone.rotary_emb(positions)
        for block in self.backbone.blocks:
            x = block(x, level, angles, mask, cache)
            yield x

    def project(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of the last block's output [..., D]."""
        return torch.as_tensor(self.backbone.output_layer(states, self.backbone.sigma_map()))


class MDLM(Dit):
    """MDLM under the class name its checkpoints declare in `architectures`."""

    config_class = MdlmConfig

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__(config)
        self.post_init()  # type: ignore[no-untyped-call]


class BD3LM(Dit):
    """BD3LM under the class name its checkpoints declare in `architectures`."""

    config_class = Bd3lmConfig

    def __init__(self, config: Bd3lmConfig) -> None:
        super().__init__(config)
        if config.var_min:  # the releases store the two rates as weights
            self.sampling_eps_min = nn.Buffer(torch.tensor(config.sampling_eps_min))
            self.sampling_eps_max = nn.Buffer(torch.tensor(config.sampling_eps_max))
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.var_min:
            initialization.constant_(self.sampling_eps_min, self.config.sampling_eps_min)
            initialization.constant_(self.sampling_eps_max, self.config.sampling_eps_max)
