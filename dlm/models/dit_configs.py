"""Configurations of the DiT families, with the fields of the released files.

They are separate from the networks, so that AutoConfig knows them without importing modelling code.
"""

from typing import Any, Self

from transformers import PreTrainedConfig

from dlm.models.configs import with_dtypes
from dlm.models.family import settled_by
from dlm.options import integer

SUBS = {"parameterization": "subs", "scale_by_sigma": False}
"""Values with which the output is logits of clean tokens, if a `config.json` states them."""


class DitConfig(PreTrainedConfig):
    """The fields that MDLM and BD3LM share, under the released names.

    The releases declare neither the mask token nor end of text. The mask token is the last row of
    the vocabulary; end of text, GPT-2's last token, is the row before it.
    """

    attribute_map = {  # noqa: RUF012 (transformers reads a plain dict)
        "hidden_size": "hidden_dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_blocks",
        "max_position_embeddings": "model_length",
    }
    hidden_dim: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    dropout: float = 0.1
    model_length: int = 1024
    vocab_size: int = 50258
    time_conditioning: bool = False
    mask_token_id: int | None = None  # the last row if null
    bos_token_id: int | None = None
    eos_token_id: int | None = None  # the row before the mask if null
    pad_token_id: int | None = None
    use_cache: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the mask and end of text, and reject networks that need the noise level.

        Raises:
            ValueError: heads do not divide the width evenly, or `time_conditioning` is on.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.hidden_dim % self.n_heads or self.hidden_dim // self.n_heads % 2:
            raise ValueError(
                "n_heads must divide hidden_dim into heads of even width, got "
                f"hidden_dim={self.hidden_dim}, n_heads={self.n_heads}"
            )
        if self.time_conditioning:
            raise ValueError(
                "time_conditioning must be False: a network that is told the noise level needs "
                "it at every forward, and unmasking policies have none"
            )
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        if self.eos_token_id is None:
            self.eos_token_id = self.vocab_size - 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build from `config.json`, without its reference to remote code.

        Raises:
            ValueError: the network does not output logits of clean tokens.
        """
        for name, value in SUBS.items():
            if config_dict.get(name, value) != value:
                raise ValueError(
                    f"{name} must be {value!r} for a mask predictor, got {config_dict[name]!r}"
                )
        kept = {k: v for k, v in with_dtypes(config_dict).items() if k != "auto_map"}
        config: Self = super().from_dict(kept | settled_by(kwargs), **kwargs)
        return config


class MdlmConfig(DitConfig):
    """MDLM's `config.json`."""

    model_type = "mdlm"


BD3LM_FIXED = {"adaln": True, "causal": False}
"""Switches of the official code that are set this way in block diffusion checkpoints."""


class Bd3lmConfig(DitConfig):
    """BD3LM's `config.json`.

    `attn_backend` selects a kernel in the official code and is kept unchanged; here
    `attn_implementation` does that. `sampling_eps_min` and `sampling_eps_max` bound the mask rates
    in training; decoding does not use them.
    """

    model_type = "bd3lm"
    block_size: int = 4
    cross_attn: bool = True  # block-causal attention; without it every token sees every token
    adaln: bool = True
    causal: bool = False
    attn_backend: str = "sdpa"
    var_min: bool = True
    sampling_eps_min: float = 1e-3
    sampling_eps_max: float = 0.999

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject the autoregressive and unconditioned networks that share the model type.

        Raises:
            ValueError: the network is one of these, or the block size is no positive int.
        """
        super().__post_init__(**kwargs)
        for name, value in BD3LM_FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value!r} as in every released BD3LM, "
                    f"got {getattr(self, name)!r}"
                )
        integer("block_size", self.block_size, least=1)
