"""Configurations of the families, field for field as released.

Apart from the networks, so that AutoConfig knows them without loading any modelling code.
"""

from typing import Any, Self

from transformers import PreTrainedConfig

FIXED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "clip_qkv": None,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "rope_full_precision": True,
    "rope_scaling": None,
    "scale_logits": False,
}
"""Switches of the upstream code that every released checkpoint sets this way."""


ARCHITECTURES = ("LLaDAModelLM", "LLaDAModel")
"""What a dense LLaDA declares itself to be."""


class LladaConfig(PreTrainedConfig):
    """The released `config.json`, field for field, under the released names."""

    model_type = "llada"
    attribute_map = {  # noqa: RUF012 (transformers reads a plain dict)
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    }
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int | None = None
    n_layers: int = 32
    mlp_hidden_size: int = 12288
    vocab_size: int = 126464
    embedding_size: int | None = None  # rows of the embedding; `vocab_size` if null
    max_sequence_length: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    weight_tying: bool = False
    mask_token_id: int | None = 126336
    bos_token_id: int | None = None
    eos_token_id: int | None = 126081
    pad_token_id: int | None = 126081
    use_cache: bool = False
    hidden_act: str = "silu"
    mlp_bias: bool = False
    initializer_range: float = 0.02
    activation_type: str = "silu"
    alibi: bool = False
    attention_layer_norm: bool = False
    bias_for_layer_norm: bool = False
    block_type: str = "llama"
    clip_qkv: float | None = None
    include_bias: bool = False
    include_qkv_bias: bool = False
    input_emb_norm: bool = False
    layer_norm_type: str = "rms"
    rope: bool = True
    rope_full_precision: bool = True
    rope_scaling: dict[str, Any] | None = None
    scale_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what the released file may leave null, and refuse what no release has."""
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        if self.embedding_size is None:
            self.embedding_size = self.vocab_size
        if self.d_model % self.n_heads or self.n_heads % self.n_kv_heads:
            raise ValueError(
                "n_heads must divide d_model and n_kv_heads must divide n_heads, got "
                f"d_model={self.d_model}, n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}"
            )
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value!r} as in every released LLaDA, "
                    f"got {getattr(self, name)!r}"
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build from `config.json`, without the pointer to remote code."""
        architecture = (config_dict.get("architectures") or [ARCHITECTURES[0]])[0]
        if architecture.startswith("LLaDAMoE") or "num_experts" in config_dict:
            raise ValueError(
                "model_type 'llada' with a mixture of experts is LLaDA-MoE, which is not "
                f"supported yet (architectures[0] = {architecture!r})"
            )
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architectures[0] of model_type 'llada' must be one of {ARCHITECTURES}, "
                f"got {architecture!r}"
            )
        kept = {k: v for k, v in config_dict.items() if k != "auto_map"}
        config: Self = super().from_dict(kept, **kwargs)
        return config
