"""Configurations of the LLaDA families, and the base class of all decoder-shaped configurations.

They are separate from the networks, so that AutoConfig knows them without importing modelling code.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import PreTrainedConfig

from dlm.models.family import settled_by
from dlm.options import integer, number

LOCAL = ("attn_implementation", "auto_map", "model_type")
"""Keys of a `config.json` that describe the code it was saved with, not the network."""

ROTARY = {"rope_theta", "rope_type", "type"}
"""Keys that `rope_parameters` may have."""

SIZES = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""Fields that have to be a positive int in every family."""

QK_NORM_PLAN = {
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
}
"""The tensor parallel plan of query and key norms."""


class DecoderConfig(PreTrainedConfig):
    """The fields that `dlm.models.transformer` reads; the base class of the families.

    Fields have the released names. Values without a field in a family's files are class variables
    or properties.
    """

    base_model_tp_plan = {  # noqa: RUF012 (transformers reads a plain dict)
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    title: ClassVar[str]  # for messages
    released_type: ClassVar[str | None] = None  # the released model_type, if ours differs
    declared: ClassVar[tuple[str, ...]]  # what checkpoints may have in `architectures`
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {}  # same in every release; allowed spellings
    sizes: ClassVar[tuple[str, ...]] = SIZES
    nullable: ClassVar[tuple[str, ...]] = ()  # sizes that may be null in a file
    qkv_bias: ClassVar[bool] = False
    o_bias: ClassVar[bool] = False
    mlp_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False  # RMSNorm of each head of queries and keys, before rotation
    fused_qkv: ClassVar[bool] = False  # one projection, with rows in the order query, key, value
    autoregressive: ClassVar[bool] = False  # whether it is causal unless given a mask per query
    rope_full_precision: ClassVar[bool] = False  # whether queries and keys are rotated in float32
    yarn: ClassVar[bool] = False  # whether `rope_parameters` describe YaRN
    query_scale: ClassVar[tuple[float, int] | None] = None  # beta, N of `RotaryEmbedding.scale`
    vocab_size: int = 32000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Any = None
    hidden_act: str = "silu"
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = False
    initializer_range: float = 0.02
    if TYPE_CHECKING:  # fields that may have another name in a family
        hidden_size: int = 0
        intermediate_size: int = 0
        num_hidden_layers: int = 0
        num_attention_heads: int = 0
        num_key_value_heads: int = 0
        max_position_embeddings: int = 0
        tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are null, and reject values that no release has."""
        self.check_numbers()
        self.fill()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        common = {"hidden_act": ("silu",), "rope_scaling": (None, False)}
        for name, values in (common | self.fixed).items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} must be {values[0]!r} as in every released {self.title}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            few, many = map(self.name_in_file, ("num_key_value_heads", "num_attention_heads"))
            raise ValueError(
                f"{few} must divide {many}, got "
                f"{self.num_key_value_heads} and {self.num_attention_heads}"
            )

    def check_numbers(self) -> None:
        """Reject sizes and other numbers that no network can have, by their names in the file.

        Raises:
            ValueError: a size is no positive int, or another number is invalid.
        """
        for name in self.sizes:
            size = getattr(self, name)
            if not (size is None and name in self.nullable):
                integer(self.name_in_file(name), size, least=1)
        number("rms_norm_eps", self.rms_norm_eps, least=0)
        number("rope_theta", self.rope_theta, least=1)

    @classmethod
    def name_in_file(cls, name: str) -> str:
        """The name of a field in `config.json`."""
        return cls.attribute_map.get(name, name)

    def fill(self) -> None:
        """Replace sizes that are null in the file by what null stands for."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that are rotated."""
        return self.head_dim

    @property
    def embedding_size(self) -> int:
        """Rows of the embedding."""
        return self.vocab_size

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """With the released `model_type`, so that the official code can read what we save."""
        kept = super().to_dict()
        return kept | {"model_type": self.released_type} if self.released_type else kept

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`, without its reference to remote code.

        Raises:
            ValueError: it belongs to another family, or has a value that no release has.
        """
        architecture = first_architecture(config_dict) or cls.declared[0]
        if architecture not in cls.declared:
            raise ValueError(
                f"architectures[0] of {cls.title} must be one of {cls.declared}, "
                f"got {architecture!r}"
            )
        kept = {k: v for k, v in with_dtypes(config_dict).items() if k not in LOCAL}
        kept |= settled_by(kwargs)
        rotary = kept.pop("rope_parameters", None)
        if rotary is not None:
            kept |= cls.read_rotary(rotary)
        implied = {key: kept.pop(key) for key in tuple(kept) if cls.implies(key)}
        found = super().from_dict(kept, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        for key, value in implied.items():
            if value not in (None, getattr(config, key)):
                raise ValueError(
                    f"{key} must be {getattr(config, key)!r} in this {cls.title}, got {value!r}"
                )
        return found

    @classmethod
    def read_rotary(cls, rotary: object) -> dict[str, Any]:
        """The fields in `rope_parameters`, where transformers 5 writes rope_theta and rope_scaling.

        Raises:
            ValueError: they do not describe plain rotary embedding.
        """
        held = rotary if isinstance(rotary, dict) else {"type": None}
        kind = held.get("rope_type", held.get("type", "default"))
        if kind != "default" or not set(held) <= ROTARY:
            raise ValueError(
                f"rope_parameters of {cls.title} must be of rope_type 'default' and hold "
                f"nothing but {', '.join(sorted(ROTARY))}, got {rotary}"
            )
        return {key: value for key, value in held.items() if key == "rope_theta"}

    @classmethod
    def implies(cls, key: str) -> bool:
        """Whether the value of a key of `config.json` follows from others, or from the family."""
        own = {field.name for field in fields(cls)}.union(cls.attribute_map)
        settable = getattr(getattr(cls, key, None), "fset", None)
        return key not in own and hasattr(cls, key) and settable is None


def first_architecture(config_dict: dict[str, Any]) -> str | None:
    """The first entry of `architectures` in a `config.json`, if there is one."""
    declared = config_dict.get("architectures") or [None]
    return str(declared[0]) if declared[0] else None


def with_dtypes(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` with its dtype as a torch dtype, None if the weights determine it.

    Raises:
        ValueError: the dtype is no floating dtype.
    """
    stated = {key: config_dict[key] for key in ("dtype", "torch_dtype") if config_dict.get(key)}
    return config_dict | {key: dtype_of(key, value) for key, value in stated.items()}


def dtype_of(key: str, value: object) -> torch.dtype | None:
    """The dtype of a value such as "bfloat16" or "torch.bfloat16"; None for "auto".

    Raises:
        ValueError: it is no floating dtype; `key` is its name in the file.
    """
    if value == "auto":
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    found = value if isinstance(value, torch.dtype) else getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{key} must be 'auto' or the name of a floating dtype, got {value!r}")
    return found


LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "rope_full_precision": (True,),
    "scale_logits": (False,),
}
"""Switches of the official code that are set this way in every released checkpoint."""


class LladaConfig(DecoderConfig):
    """Dense LLaDA: 8B Base, Instruct and 1.5."""

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
    title = "LLaDA"
    declared = ("LLaDAModelLM", "LLaDAModel")
    fixed = LLADA_FIXED
    nullable = ("embedding_size", "intermediate_size", "num_key_value_heads")
    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int | None = None
    n_layers: int = 32
    mlp_hidden_size: int | None = 12288  # `mlp_ratio` times `d_model` if null
    mlp_ratio: int = 4
    vocab_size: int = 126464
    embedding_size: int | None = None  # type: ignore[assignment]  # `vocab_size` if null
    max_sequence_length: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    weight_tying: bool = False
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
    rope_full_precision: bool = True  # type: ignore[misc]
    scale_logits: bool = False

    def fill(self) -> None:
        """Replace sizes that are null in the file by what null stands for."""
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        if self.embedding_size is None:
            self.embedding_size = self.vocab_size
        if self.mlp_hidden_size is None:
            self.mlp_hidden_size = integer("mlp_ratio", self.mlp_ratio, least=1) * self.d_model

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject values that no release has."""
        super().__post_init__(**kwargs)
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model, got {self.n_heads} and {self.d_model}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`; LLaDA-MoE and iLLaDA, of the same type, get their classes."""
        architecture = first_architecture(config_dict) or ""
        if architecture.startswith("LLaDAMoE") or "num_experts" in config_dict:
            from dlm.models.moe_configs import LladaMoeConfig

            return LladaMoeConfig.from_dict(config_dict, **kwargs)
        if architecture in ILladaConfig.declared:
            return ILladaConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class ILladaConfig(DecoderConfig):
    """iLLaDA-8B (Nie et al. 2026, arXiv:2606.25331)."""

    model_type = "illada"
    title = "iLLaDA"
    declared = ("ILLaDAForCausalLM", "ILLaDAModel")
    fixed = {"layer_norm_eps": (None,)}  # noqa: RUF012
    nullable = ("head_dim",)
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None  # type: ignore[assignment]  # `hidden_size` / heads if null
    vocab_size: int = 155136
    max_position_embeddings: int = 8192
    attention_bias: bool = False
    mlp_bias: bool = False  # type: ignore[misc]
    layer_norm_eps: float | None = None  # for a LayerNorm, which no release has
    tie_word_embeddings: bool = True

    def fill(self) -> None:
        """Replace sizes that are null in the file by what null stands for."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:  # type: ignore[override]
        """Whether queries, keys and values have a bias."""
        return self.attention_bias

    @property
    def o_bias(self) -> bool:  # type: ignore[override]
        """Whether the output of attention has a bias."""
        return self.attention_bias

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`, which has to state rope_theta.

        Raises:
            ValueError: it has no rope_theta, or a value that no release has.
        """
        if "rope_theta" not in config_dict | (config_dict.get("rope_parameters") or {}):
            raise ValueError("rope_theta must be in the config.json of an iLLaDA")
        return super().from_dict(config_dict, **kwargs)
