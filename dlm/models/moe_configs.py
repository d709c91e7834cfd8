"""Configurations of the mixture-of-experts families, with the fields of the released files.

They are separate from the networks, as in `dlm.models.configs`. Each has the fields that
`dlm.models.experts.SparseMlp` reads: as a class variable if the released file lacks one, or through
`attribute_map` if the file has another name for it.
"""

from typing import Any, ClassVar

from dlm.models.configs import QK_NORM_PLAN, SIZES, DecoderConfig
from dlm.models.qwen_configs import QWEN_FIXED, Qwen3ShapedConfig
from dlm.options import integer

EXPERTS_PLAN = {
    "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "layers.*.mlp.experts.down_proj": "rowwise",
    "layers.*.mlp.experts": "moe_tp_experts",
}
ATTENTION_PLAN = QK_NORM_PLAN | {
    name: style for name, style in DecoderConfig.base_model_tp_plan.items() if ".mlp." not in name
}
DENSE_PLAN = {
    f"layers.*.mlp.{module}{name}": style
    for module in ("", "shared_experts.")
    for name, style in (("gate_proj", "colwise"), ("up_proj", "colwise"), ("down_proj", "rowwise"))
}
EXPERT_PARALLEL_PLAN: Any = {  # transformers' annotation does not fit
    "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
    "layers.*.mlp.experts.down_proj": "grouped_gemm",
    "layers.*.mlp.experts": "ep_dispatch_experts",
}


class SparseConfig(DecoderConfig):
    """The base class of the families below."""

    base_model_tp_plan = ATTENTION_PLAN | EXPERTS_PLAN
    base_model_ep_plan = EXPERT_PARALLEL_PLAN
    qk_norm = True
    sizes = (*SIZES, "moe_intermediate_size", "num_experts")
    scoring: ClassVar[str] = "softmax"
    num_experts: int = 128
    num_experts_per_tok: int = 8
    attention_dropout: float = 0.0
    output_router_logits: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject values that no release has."""
        super().__post_init__(**kwargs)
        integer("num_experts_per_tok", self.num_experts_per_tok, least=1, most=self.num_experts)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return True


class LladaMoeConfig(SparseConfig):
    """LLaDA-MoE-7B-A1B (inclusionAI 2025), whose files have the model type `llada` of LLaDA."""

    model_type = "llada_moe"
    attribute_map = {  # noqa: RUF012 (transformers reads a plain dict)
        "moe_intermediate_size": "expert_intermediate_size",
        "intermediate_size": "dense_intermediate_size",
    }
    title = "LLaDA-MoE"
    released_type = "llada"
    declared = ("LLaDAMoEModelLM", "LLaDAMoEModel")
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0,),
        "clip_qkv": (None,),
        "moe_router_enable_expert_bias": (False,),
        "moe_router_score_function": ("softmax",),
        "norm_topk_prob": (None, False),
        "output_router_logits": (False,),
        "partial_rotary_factor": (1,),
        "qk_layernorm": (True,),
        "routed_scaling_factor": (1,),
        "router_num_group": (None,),
        "router_topk_group": (None,),
        "shared_expert_intermediate_size": (None,),
    }
    num_shared_experts: ClassVar[int] = 0
    nullable = ("intermediate_size",)
    hidden_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    num_experts: int = 64
    expert_intermediate_size: int = 1024
    dense_intermediate_size: int = 8192  # unused: every layer has experts
    max_position_embeddings: int = 8192
    vocab_size: int = 157184
    rms_norm_eps: float = 1e-5
    rope_theta: float = 50000.0
    partial_rotary_factor: float = 1
    qk_layernorm: bool = True
    attention_bias: bool = False
    clip_qkv: float | None = None
    moe_layer_freq: list[int] | None = None  # a 1 for each layer if null
    moe_router_enable_expert_bias: bool = False
    moe_router_score_function: str = "softmax"
    norm_topk_prob: bool | None = None
    routed_scaling_factor: float = 1
    router_aux_loss_coef: float = 0.01
    router_num_group: int | None = None
    router_topk_group: int | None = None
    shared_expert_intermediate_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are left out, and reject values that no release has."""
        super().__post_init__(**kwargs)
        if self.moe_layer_freq is None:
            self.moe_layer_freq = [1] * self.num_hidden_layers
        if self.moe_layer_freq != [1] * self.num_hidden_layers:
            raise ValueError(
                f"moe_layer_freq must be 1 for each of the {self.num_hidden_layers} layers, "
                f"got {self.moe_layer_freq}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "num_attention_heads must divide hidden_size, got "
                f"{self.num_attention_heads} and {self.hidden_size}"
            )


class Llada2Config(SparseConfig):
    """LLaDA2.0 and 2.1 (Bie et al. 2025, arXiv:2512.15745); defaults are those of mini."""

    model_type = "llada2_moe"
    base_model_tp_plan = EXPERTS_PLAN | DENSE_PLAN  # the fused projection stays whole
    title = "LLaDA2"
    declared = ("LLaDA2MoeModelLM", "LLaDA2MoeModel")
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_dropout": (0,),
        "embedding_dropout": (0,),
        "moe_router_enable_expert_bias": (True,),
        "norm_head": (False,),
        "norm_softmax": (False,),
        "norm_topk_prob": (True,),
        "output_dropout": (0,),
        "output_router_logits": (False,),
        "router_dtype": ("fp32",),
        "score_function": ("sigmoid",),
        "use_bias": (False,),
        "use_qk_norm": (True,),
        "use_qkv_bias": (False,),
        "use_rmsnorm": (True,),
        "use_sliding_window": (False,),
        "using_split_qkv_in_self_attention": (False,),
    }
    scoring = "sigmoid"
    fused_qkv = True
    hidden_size: int = 2048
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    intermediate_size: int = 5120  # of the first `first_k_dense_replace` layers
    first_k_dense_replace: int = 1
    moe_intermediate_size: int = 512
    num_experts: int = 256
    num_shared_experts: int = 1
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    score_function: str = "sigmoid"
    moe_router_enable_expert_bias: bool = True
    router_dtype: str = "fp32"
    norm_topk_prob: bool = True
    max_position_embeddings: int = 32768
    max_window_layers: int = 28
    vocab_size: int = 157184
    rope_theta: float = 600000.0
    partial_rotary_factor: float = 0.5
    rotary_dim: int | None = None  # type: ignore[assignment]  # factor * head_dim if null
    use_qk_norm: bool = True
    use_bias: bool = False
    use_qkv_bias: bool = False
    use_rmsnorm: bool = True
    use_sliding_window: bool = False
    using_split_qkv_in_self_attention: bool = False
    norm_head: bool = False
    norm_softmax: bool = False
    embedding_dropout: float = 0.0
    output_dropout: float = 0.0
    block_size: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are left out, and reject values that no release has."""
        super().__post_init__(**kwargs)
        rotary = int(self.head_dim * self.partial_rotary_factor)
        if self.rotary_dim is None:
            self.rotary_dim = rotary
        if self.rotary_dim != rotary or rotary % 2:
            raise ValueError(
                "rotary_dim must be even and partial_rotary_factor * head_dim, got "
                f"{self.rotary_dim}, {self.partial_rotary_factor} and {self.head_dim}"
            )
        if self.num_experts % self.n_group or self.num_experts < 2 * self.n_group:
            raise ValueError(
                "n_group must divide num_experts into groups of two or more, got "
                f"{self.n_group} and {self.num_experts}"
            )
        integer("topk_group", self.topk_group, least=1, most=self.n_group)
        within = self.num_experts // self.n_group * self.topk_group
        integer("num_experts_per_tok", self.num_experts_per_tok, least=1, most=within)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return layer >= self.first_k_dense_replace


class Qwen3SparseConfig(Qwen3ShapedConfig, SparseConfig):
    """The base class of the two families with the architecture of Qwen3-30B-A3B."""

    base_model_tp_plan = SparseConfig.base_model_tp_plan
    sizes = SparseConfig.sizes
    nullable = ("head_dim", "intermediate_size")
    fixed = QWEN_FIXED | {
        "attention_bias": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
        "norm_topk_prob": (True,),
        "output_router_logits": (False,),
    }
    num_shared_experts: ClassVar[int] = 0
    hidden_size: int = 2048
    intermediate_size: int = 6144  # unused: every layer has experts
    num_hidden_layers: int = 48
    num_key_value_heads: int = 4
    moe_intermediate_size: int = 768
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are left out, and reject values that no release has."""
        super().__post_init__(**kwargs)
        if self.mlp_only_layers is None:
            self.mlp_only_layers = []


class Rnd1Config(Qwen3SparseConfig):
    """RND1-Base (Radical Numerics 2025)."""

    model_type = "rnd1"
    title = "RND1"
    declared = ("RND1LM", "RND1Model")
    fixed = Qwen3SparseConfig.fixed | {"is_causal": (False,)}
    max_position_embeddings: int = 40960
    is_causal: bool = False
    moe_backend: str = "hf"  # read by the official code; here `experts_implementation` decides
    num_diffusion_steps: int = 256


class SdarMoeConfig(Qwen3SparseConfig):
    """SDAR-30B-A3B (JetAstra 2025, arXiv:2510.06303)."""

    model_type = "sdar_moe"
    title = "SDAR-MoE"
    declared = ("SDARMoeForCausalLM", "SDARMoeModel")
    block_size: int = 4
