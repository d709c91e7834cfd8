"""The bidirectional transformer of the Llama-like families.

It reads the fields of `dlm.models.configs.DecoderConfig`, and for mixture-of-experts layers those
of `dlm.models.experts.SparseMlp`. Block-causal attention needs a mask, and logits are not shifted:
`dlm.models.model.Model` does both.

Shapes: B rows, L tokens, K keys, D model width, H heads, E head width, V vocabulary.
"""

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from dlm.cache import View
from dlm.huggingface.generation import DiffusionGenerationMixin
from dlm.kernels.layers import Heads, turn
from dlm.models import fused
from dlm.models.attention import attention, causal_mask, mask_of
from dlm.models.experts import SparseMlp, initialise
from dlm.models.families import family_of
from dlm.models.linear import Linear, Mlp
from dlm.models.outputs import keeps_states, masked_loss, output
from dlm.models.rotary import Angles, RotaryEmbedding


class Attention(nn.Module):
    """Grouped-query attention, bidirectional except for what the mask hides."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        # Stored here because reading attributes of transformers' configurations is slow.
        self.layout = Heads(config.num_attention_heads, config.num_key_value_heads, self.head_dim)
        self.rotary_dim = config.rotary_dim
        self.normed, self.fused = config.qk_norm, config.fused_qkv
        width, bias = config.hidden_size, config.qkv_bias
        wide = config.num_attention_heads * self.head_dim
        narrow = config.num_key_value_heads * self.head_dim
        self.widths = (wide, narrow, narrow)
        if self.fused:
            self.qkv_proj = Linear(width, wide + 2 * narrow, bias=bias)
        else:
            self.q_proj = Linear(width, wide, bias=bias)
            self.k_proj = Linear(width, narrow, bias=bias)
            self.v_proj = Linear(width, narrow, bias=bias)
        self.o_proj = Linear(wide, width, bias=config.o_bias)
        if self.normed:
            self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        mask: Tensor | None,
        cache: View | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        query, key, value = (self.heads(part) for part in self.parts(x))
        if self.normed:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = (query.shape[1], key.shape[1])
        turned = turn(torch.cat((query, key), 1), angles.cosine, angles.sine)
        query, key = turned.split(heads, 1)
        if angles.scale is not None:
            query = query * angles.scale
        out = attention(self, query, key, value, mask, cache)
        return torch.as_tensor(self.o_proj(rearrange(out, "b l h e -> b l (h e)")))

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads, [B, L, H E] each, from [B, L, D]."""
        if self.fused:
            parts: tuple[Tensor, ...] = self.qkv_proj(x).split(self.widths, -1)
            return parts
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def heads(self, part: Tensor) -> Tensor:
        """[B, L, H E] -> [B, H, L, E]."""
        return rearrange(part, "b l (h e) -> b h l e", e=self.head_dim)


def mlp_of(config: Any) -> Mlp:
    """The MLP of a layer without experts."""
    sizes = config.hidden_size, config.intermediate_size
    return Mlp(*sizes, config.hidden_act, bias=config.mlp_bias)


class Layer(GradientCheckpointingLayer):
    """Pre-norm attention, then a SwiGLU MLP or a mixture of SwiGLU experts."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: nn.Module = SparseMlp(config) if config.is_sparse(layer) else mlp_of(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        mask: Tensor | None,
        cache: View | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache)
        return torch.as_tensor(x + self.mlp(self.post_attention_layernorm(x)))


class Bidirectional(DiffusionGenerationMixin, PreTrainedModel):
    """Loading, initialisation and resizing that the networks below share."""

    base_model_prefix = "model"
    _no_split_modules = ["Layer"]  # noqa: RUF012 (transformers reads a plain list)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    renamings: ClassVar[tuple[tuple[str, str], ...]] = ()
    packs_experts: ClassVar[bool] = False  # see `dlm.models.conversions`

    def resize_token_embeddings(self, *args: Any, **options: Any) -> nn.Embedding:
        """Resize as transformers does, and update `embedding_size`, which only LLaDA stores.

        The mask and stop ids of a released vocabulary are recognised by its size. They are written
        to the generation configuration first.
        """
        self.keep_tokens()
        embedding: nn.Embedding = super().resize_token_embeddings(*args, **options)
        if not isinstance(getattr(type(self.config), "embedding_size", None), property):
            self.config.embedding_size = embedding.num_embeddings
        return embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Loading builds the network on the meta device and does not fill buffers that the
        # checkpoint lacks. Without this, rotary frequencies would be uninitialised memory.
        if isinstance(module, RotaryEmbedding):
            initialization.copy_(module.inv_freq, RotaryEmbedding.frequencies(module.config))
        initialise(module, self.config.initializer_range)


class TransformerModel(Bidirectional):
    """Embedding, layers and final norm: everything except the vocabulary projection."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.embedding_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the network around this one says whether there are experts

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: View | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Hidden states of every token.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding, which nothing attends to; or a mask per query,
                [B, L, K] or [B, 1, L, K].
            position_ids: int64 [B or 1, L]; by default the column index. For a padded batch of a
                family with a `query_scale`, where more than distances between tokens matters, the
                default is the number of tokens before, without padding.
            inputs_embeds: [B, L, D] instead of `input_ids`.
            cache: the view that stores keys and values and chooses those to attend to.
            output_hidden_states: also return the embeddings and the output of every layer, the
                last one after the final norm.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self.places(x, attention_mask)
        if self.config.autoregressive:
            attention_mask = causal_mask(self.config, x, attention_mask)
        mask = mask_of(self.config, x, attention_mask)
        angles = self.rotary_emb(position_ids, x.dtype)
        if not output_hidden_states and fused.covers(self, x, (Layer, Attention)):
            return BaseModelOutput(last_hidden_state=fused.run(self, x, angles, mask, cache))
        states = []
        for layer in self.layers:
            if output_hidden_states:
                states.append(x)
            x = layer(x, angles, mask, cache)
        x = self.norm(x)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(*states, x) if output_hidden_states else None,
        )

    def places(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Default positions, int64 [B or 1, L], of inputs [B, L, D]."""
        padded = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
        if padded and self.config.query_scale is not None:
            return (torch.as_tensor(attention_mask).long().cumsum(-1) - 1).clamp_(min=0)
        return torch.arange(x.shape[1], device=x.device)[None]


class TransformerForMaskedLM(Bidirectional):
    """The network with its vocabulary projection."""

    packs_rows: ClassVar[bool] = True
    accepts_loss_kwargs: ClassVar[bool] = True  # Trainer then counts labels over accumulated steps
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = TransformerModel(config)
        self.lm_head = Linear(config.hidden_size, config.embedding_size, bias=False)
        # Trainer counts labels by this: all of them, or all but the first of a row. Otherwise
        # transformers would decide by the name of the class.
        self.loss_type = "ForCausalLM" if family_of(config).shift else "ForMaskedLM"
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # By default transformers searches the source of the class's module for its decorator.
        return cls.packs_experts

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
        """Logits [B, L, V] at each position, not shifted, and the loss of `labels`.

        Arguments are those of `TransformerModel` and of the functions in `dlm.models.outputs`.
        """
        keep = keeps_states(self.config, output_hidden_states, output_attentions, use_cache)
        out = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, output_hidden_states=keep
        )
        logits = self.lm_head(out.last_hidden_state)
        loss = masked_loss(self.config, logits, labels, attention_mask, num_items_in_batch)
        whole = self.config.return_dict if return_dict is None else return_dict
        return output(loss, logits, out.hidden_states, whole)

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
