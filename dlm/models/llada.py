"""LLaDA (Nie et al. 2025, arXiv:2502.09992): network and released weight names.

Covers `GSAI-ML/LLaDA-8B-Base`, `LLaDA-8B-Instruct` and `LLaDA-1.5`, all of one layout.
"""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from dlm.models.configs import LladaConfig
from dlm.models.transformer import TransformerForMaskedLM


class LLaDAModelLM(TransformerForMaskedLM):
    """LLaDA under the class name its checkpoints declare in `architectures`."""

    config_class = LladaConfig


# Order matters: `ff_out` is both the vocabulary projection and the MLP's down projection.
RENAMINGS = (
    (r"^model\.transformer\.wte\.", "model.embed_tokens."),
    (r"^model\.transformer\.ln_f\.", "model.norm."),
    (r"^model\.transformer\.ff_out\.", "lm_head."),
    (r"^model\.transformer\.blocks\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ff_norm\.", ".post_attention_layernorm."),
    (r"(\d+)\.q_proj\.", r"\1.self_attn.q_proj."),
    (r"(\d+)\.k_proj\.", r"\1.self_attn.k_proj."),
    (r"(\d+)\.v_proj\.", r"\1.self_attn.v_proj."),
    (r"\.attn_out\.", ".self_attn.o_proj."),
    (r"\.ff_proj\.", ".mlp.gate_proj."),
    (r"(\d+)\.up_proj\.", r"\1.mlp.up_proj."),
    (r"(\d+)\.ff_out\.", r"\1.mlp.down_proj."),
)


def register_conversion() -> None:
    """Teach transformers the released weight names, in both directions."""
    renamings: list[WeightConverter | WeightRenaming] = [
        WeightRenaming(source, target) for source, target in RENAMINGS
    ]
    register_checkpoint_conversion_mapping("llada", renamings, overwrite=True)
