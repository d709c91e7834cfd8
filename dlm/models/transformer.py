"""The bidirectional decoder-shaped transformer that the Llama-like families share.

Shapes: B rows, L tokens, D model width, H heads, E head width, V vocabulary.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    rotate_half,
)

from dlm.cache import View


class RotaryEmbedding(nn.Module):
    """Angles of rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = nn.Buffer(self.frequencies(config), persistent=False)

    @staticmethod
    def frequencies(config: Any) -> Tensor:
        """theta^(-2i/E), float32 [E/2]."""
        width = config.hidden_size // config.num_attention_heads
        exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
        frequencies: Tensor = 1.0 / config.rope_theta**exponent
        return frequencies

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [B, 1, L, E], of int64 positions [B, L]."""
        angle = positions[:, None, :, None].float() * self.inv_freq.float()
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, H, L, E] in float32, back in its own dtype (LLaDA's `rope_full_precision`)."""
    wide = x.float()
    rotated: Tensor = wide * cos + rotate_half(wide) * sin
    return rotated.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width, narrow = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, narrow, bias=False)
        self.v_proj = nn.Linear(width, narrow, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: View | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        query, key, value = (
            rearrange(project(x), "b l (h e) -> b h l e", e=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, _ = attend(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, is_causal=False
        )
        return torch.as_tensor(self.o_proj(rearrange(out, "b l h e -> b l (h e)")))


class Layer(GradientCheckpointingLayer):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: View | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache)
        return torch.as_tensor(x + self.mlp(self.post_attention_layernorm(x)))


class Bidirectional(PreTrainedModel):
    """Loading rules the networks below share."""

    base_model_prefix = "model"
    _no_split_modules = ["Layer"]  # noqa: RUF012 (transformers reads a plain list)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Loading builds on the meta device and fills no buffer that the checkpoint lacks:
        # without this the rotary frequencies are uninitialised memory.
        if isinstance(module, RotaryEmbedding):
            initialization.copy_(module.inv_freq, RotaryEmbedding.frequencies(module.config))


class TransformerModel(Bidirectional):
    """Embedding, layers and final norm: everything but the vocabulary projection."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.embedding_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: View | None = None,
    ) -> BaseModelOutput:
        """Hidden states of every token.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding, which nothing attends to; or a 4-D mask of the
                attention backend's own kind.
            position_ids: int64 [B or 1, L]; the column index if absent.
            inputs_embeds: [B, L, D] instead of `input_ids`.
            cache: where keys and values go, and what there is to attend to.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask
        )
        angles = self.rotary_emb(position_ids)
        for layer in self.layers:
            x = layer(x, angles, mask, cache)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class TransformerForMaskedLM(Bidirectional):
    """The network with its vocabulary projection."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = TransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.embedding_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits [B, L, V] of the token at each position; arguments as `TransformerModel`."""
        out = self.model(input_ids, attention_mask, position_ids, inputs_embeds)
        return MaskedLMOutput(logits=self.lm_head(out.last_hidden_state))

    def states(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D], see `dlm.models.model.Network`."""
        out = self.model(tokens, attention_mask, positions, cache=cache)
        return torch.as_tensor(out.last_hidden_state)

    def project(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D]."""
        return torch.as_tensor(self.lm_head(states))
