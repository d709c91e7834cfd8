"""Configurations of families with the architecture of Qwen2, Qwen3 or Llama, as released.

They are separate from the networks, as in `dlm.models.configs`.
"""

from typing import Any, ClassVar

from dlm.models.configs import QK_NORM_PLAN, DecoderConfig, first_architecture

QWEN_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0,),
    "sliding_window": (None, False),
    "use_sliding_window": (False, None),
}


class QwenConfig(DecoderConfig):
    """The base class of the Qwen-shaped families below.

    A sliding window that is switched off is dropped, because releases write that in various ways.
    """

    fixed = QWEN_FIXED
    nullable: ClassVar[tuple[str, ...]] = ("head_dim",)
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None  # type: ignore[assignment]  # `hidden_size` / heads if null
    vocab_size: int = 151936
    max_position_embeddings: int = 32768
    max_window_layers: int | None = None
    sliding_window: int | None = None
    use_sliding_window: bool = False
    rope_theta: float = 1000000.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False

    def fill(self) -> None:
        """Replace sizes that are null in the file by what null stands for."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject values that no release has."""
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
    """The architecture of Qwen2: biases of queries, keys and values."""

    qkv_bias = True


class Qwen7bConfig(Qwen2ShapedConfig):
    """The sizes of Qwen2.5-7B."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    vocab_size: int = 152064


class QwenHalfBillionConfig(Qwen2ShapedConfig):
    """The sizes of Qwen2.5-Coder-0.5B."""

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    tie_word_embeddings: bool = True


class Qwen3ShapedConfig(QwenConfig):
    """The architecture of Qwen3: a norm for each query and key head, and heads of any width."""

    base_model_tp_plan = DecoderConfig.base_model_tp_plan | QK_NORM_PLAN
    qk_norm = True
    fixed = QWEN_FIXED | {"attention_bias": (False,)}
    head_dim: int | None = 128
    attention_bias: bool = False


class DreamConfig(Qwen7bConfig):
    """Dream-v0-7B and its relatives: Dream-Coder, DiffuCoder, DreamOn, dParallel."""

    model_type = "Dream"
    title = "Dream"
    declared = ("DreamModel",)
    fixed = QWEN_FIXED | {"use_mrope": (False,)}
    max_position_embeddings: int = 131072
    use_mrope: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`; DreamReasoner, of the same type, gets its own class."""
        architecture = first_architecture(config_dict)
        unnamed = architecture is None and {"block_size", "head_dim"} <= config_dict.keys()
        if architecture in DreamReasonerConfig.declared or unnamed:
            return DreamReasonerConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class DreamReasonerConfig(Qwen3ShapedConfig):
    """DreamReasoner-8B (arXiv:2606.19257): a Qwen3 network whose files have the type `Dream`."""

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
    """Fast-dLLM v2 (NVIDIA 2025, arXiv:2509.26328); defaults are those of 7B."""

    model_type = "Fast_dLLM_Qwen"
    title = "Fast-dLLM v2"
    declared = ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_QwenModel")
    bd_size: int = 32


class WeDLMConfig(QwenConfig):
    """WeDLM (Tencent 2025, arXiv:2512.22737): 7B from Qwen2.5, 8B from Qwen3.

    `attention_bias` and `qk_norm` distinguish the two. Defaults are those of the released code,
    whose files leave out fields with default values.
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

    @property
    def base_model_tp_plan(self) -> dict[str, str]:  # type: ignore[override]
        """The tensor parallel plan, with the head norms if there are any."""
        norms = QK_NORM_PLAN if self.qk_norm else {}
        return DecoderConfig.base_model_tp_plan | norms


class OpenDcoderConfig(QwenHalfBillionConfig):
    """Open-dCoder-0.5B, whose files look like those of an autoregressive Qwen2."""

    model_type = "qwen2"
    title = "Open-dCoder"
    declared = ("Qwen2ForCausalLM",)


class A2dQwen2Config(QwenHalfBillionConfig):
    """Bidirectional Qwen2 (dllm 2025); defaults are those of Qwen2.5-Coder-0.5B."""

    model_type = "a2d-qwen2"
    title = "A2D-Qwen2"
    declared = ("A2DQwen2LMHeadModel", "A2DQwen2Model")
    block_size: int | None = None  # written when saved here; releases have it in their name


class A2dQwen3Config(Qwen3ShapedConfig):
    """Bidirectional Qwen3 (dllm 2025); defaults are those of 0.6B."""

    model_type = "a2d-qwen3"
    title = "A2D-Qwen3"
    declared = ("A2DQwen3LMHeadModel", "A2DQwen3Model")
    block_size: int | None = None  # written when saved here; releases have it in their name
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True


class CodaConfig(Qwen3ShapedConfig):
    """CoDA-1.7B (Salesforce 2025, arXiv:2510.03270), from Qwen3-1.7B with an untied projection.

    No released file has `tie_word_embeddings`, and the released code ties nothing.
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
    """The base class of the families with the architecture of Llama."""

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
    head_dim: int | None = None  # type: ignore[assignment]  # `hidden_size` / heads if null
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
        """Replace sizes that are null in the file by what null stands for."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads


class A2dLlamaConfig(LlamaShapedConfig):
    """Bidirectional Llama (dllm 2025)."""

    model_type = "a2d-llama"
    title = "A2D-Llama"
    declared = ("A2DLlamaLMHeadModel", "A2DLlamaModel")
    block_size: int | None = None  # written when saved here; releases have it in their name
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True


class DiffuLlamaConfig(LlamaShapedConfig):
    """DiffuLLaMA-7B (Gong et al. 2024, arXiv:2410.17891), whose files look like Llama 2's."""

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

    Its files have the model type `llama` and do not state its block size of 4.
    """

    model_type = "stable_diffcoder"
    title = "Stable-DiffCoder"
    released_type = "llama"
    declared = ("StableDiffcoderForCausalLM",)
    block_size: int = 4  # written when saved here
    vocab_size: int = 155136
