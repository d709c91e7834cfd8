"""Configurations of the families in the shape of Qwen2 and Qwen3, field for field as released.

Apart from the networks, as `dlm.models.configs`.
"""

from typing import Any, ClassVar

from dlm.models.configs import QK_NORM_PLAN, DecoderConfig, first_architecture

QWEN_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0,),
    "sliding_window": (None, False),
    "use_sliding_window": (False, None),
}


class QwenConfig(DecoderConfig):
    """What the families below share; not one itself.

    A window that is switched off is dropped: releases differ in how they write that down.
    """

    fixed = QWEN_FIXED
    nullable: ClassVar[tuple[str, ...]] = ("head_dim",)
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None  # type: ignore[assignment]  # `hidden_size` over heads if null
    vocab_size: int = 151936
    max_position_embeddings: int = 32768
    max_window_layers: int | None = None
    sliding_window: int | None = None
    use_sliding_window: bool = False
    rope_theta: float = 1000000.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False

    def fill(self) -> None:
        """Give sizes that the file leaves null the value that this stands for."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what no release has."""
        if not self.use_sliding_window:
            self.sliding_window = None
        super().__post_init__(**kwargs)
        layers = getattr(self, "layer_types", None) or ()
        if any(kind != "full_attention" for kind in layers):
            raise ValueError(
                f"layer_types must all be 'full_attention' as in every released {self.title}, "
                f"got {layers}"
            )


class Qwen2ShapedConfig(QwenConfig):
    """Biases at queries, keys and values."""

    qkv_bias = True


class Qwen7bConfig(Qwen2ShapedConfig):
    """Sizes of Qwen2.5-7B."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    vocab_size: int = 152064


class QwenHalfBillionConfig(Qwen2ShapedConfig):
    """Sizes of Qwen2.5-Coder-0.5B."""

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    tie_word_embeddings: bool = True


class Qwen3ShapedConfig(QwenConfig):
    """A norm for each head of queries and keys, and heads of any width."""

    base_model_tp_plan = DecoderConfig.base_model_tp_plan | QK_NORM_PLAN
    qk_norm = True
    fixed = QWEN_FIXED | {"attention_bias": (False,)}
    head_dim: int | None = 128
    attention_bias: bool = False


class DreamConfig(Qwen7bConfig):
    """Dream-v0-7B, and what was trained from it: Dream-Coder, DiffuCoder, DreamOn, dParallel."""

    model_type = "Dream"
    title = "Dream"
    declared = ("DreamModel",)
    fixed = QWEN_FIXED | {"use_mrope": (False,)}
    max_position_embeddings: int = 131072
    use_mrope: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`; DreamReasoner, of the same type, becomes its own class."""
        architecture = first_architecture(config_dict)
        unnamed = architecture is None and {"block_size", "head_dim"} <= config_dict.keys()
        if architecture in DreamReasonerConfig.declared or unnamed:
            return DreamReasonerConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class DreamReasonerConfig(Qwen3ShapedConfig):
    """DreamReasoner-8B (arXiv:2606.19257): its files say `Dream`, its network is Qwen3's."""

    model_type = "dream_reasoner"
    title = "DreamReasoner"
    released_type = "Dream"
    declared = ("DreamForCausalLM",)
    block_size: int = 32


class SdarConfig(Qwen3ShapedConfig):
    """SDAR (JetAstra 2025, arXiv:2510.06303) and TraDo (Gen-Verse 2025, arXiv:2509.06949)."""

    model_type = "sdar"
    title = "SDAR"
    declared = ("SDARForCausalLM", "SDARModel")
    block_size: int = 4


class FastDllmQwenConfig(Qwen7bConfig):
    """Fast-dLLM v2 (NVIDIA 2025, arXiv:2509.26328), 7B by default."""

    model_type = "Fast_dLLM_Qwen"
    title = "Fast-dLLM v2"
    declared = ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_QwenModel")
    bd_size: int = 32


class WeDLMConfig(QwenConfig):
    """WeDLM (Tencent 2025, arXiv:2512.22737): 7B from Qwen2.5, 8B from Qwen3, by its switches.

    Defaults are those of the released code, which leaves them out of its files.
    """

    model_type = "wedlm"
    title = "WeDLM"
    declared = ("WeDLMForCausalLM",)
    autoregressive = True
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_key_value_heads: int = 32
    rope_theta: float = 10000.0
    attention_bias: bool = True
    qk_norm: bool = False  # type: ignore[misc]

    @property
    def qkv_bias(self) -> bool:  # type: ignore[override]
        """Whether queries, keys and values have a bias."""
        return self.attention_bias


class OpenDcoderConfig(QwenHalfBillionConfig):
    """Open-dCoder-0.5B: its files are those of an autoregressive Qwen2."""

    model_type = "qwen2"
    title = "Open-dCoder"
    declared = ("Qwen2ForCausalLM",)


class A2dQwen2Config(QwenHalfBillionConfig):
    """Qwen2 made bidirectional (dllm 2025), Qwen2.5-Coder-0.5B by default."""

    model_type = "a2d-qwen2"
    title = "A2D-Qwen2"
    declared = ("A2DQwen2LMHeadModel", "A2DQwen2Model")
    block_size: int | None = None  # of its own saving; releases tell it by their name


class A2dQwen3Config(Qwen3ShapedConfig):
    """Qwen3 made bidirectional (dllm 2025), 0.6B by default."""

    model_type = "a2d-qwen3"
    title = "A2D-Qwen3"
    declared = ("A2DQwen3LMHeadModel", "A2DQwen3Model")
    block_size: int | None = None  # of its own saving; releases tell it by their name
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True


class CodaConfig(Qwen3ShapedConfig):
    """CoDA-1.7B (Salesforce 2025, arXiv:2510.03270), from Qwen3-1.7B, its projection untied.

    `tie_word_embeddings` is in no released file, and the released code ties nothing.
    """

    model_type = "CoDA"
    title = "CoDA"
    declared = ("CoDALanguageModel",)
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 40960


class LlamaShapedConfig(DecoderConfig):
    """What the families in the shape of Llama share; not one itself."""

    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0,),
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
    }
    nullable = ("head_dim", "num_key_value_heads")
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8  # type: ignore[assignment]  # as many as heads if null
    head_dim: int | None = None  # type: ignore[assignment]  # `hidden_size` over heads if null
    vocab_size: int = 128256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 500000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False  # type: ignore[misc]
    pretraining_tp: int = 1
    tie_word_embeddings: bool = False

    def fill(self) -> None:
        """Give sizes that the file leaves null the value that this stands for."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads


class A2dLlamaConfig(LlamaShapedConfig):
    """Llama made bidirectional (dllm 2025)."""

    model_type = "a2d-llama"
    title = "A2D-Llama"
    declared = ("A2DLlamaLMHeadModel", "A2DLlamaModel")
    block_size: int | None = None  # of its own saving; releases tell it by their name
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True


class DiffuLlamaConfig(LlamaShapedConfig):
    """DiffuLLaMA-7B (Gong et al. 2024, arXiv:2410.17891): its files are those of Llama 2."""

    model_type = "llama"
    title = "DiffuLLaMA"
    declared = ("LlamaForCausalLM",)
    intermediate_size: int = 11008
    num_key_value_heads: int | None = None
    vocab_size: int = 32000
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class StableDiffCoderConfig(LlamaShapedConfig):
    """Stable-DiffCoder-8B (ByteDance Seed 2026, arXiv:2601.15892), from Seed-Coder-8B.

    Its files say `llama`, and nothing of its blocks of 4.
    """

    model_type = "stable_diffcoder"
    title = "Stable-DiffCoder"
    released_type = "llama"
    declared = ("StableDiffcoderForCausalLM",)
    block_size: int = 4  # of its own saving
    vocab_size: int = 155136
