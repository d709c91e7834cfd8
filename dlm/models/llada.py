"""LLaDA and iLLaDA: classes with the names that checkpoints declare, and weight names."""

from dlm.models.configs import ILladaConfig, LladaConfig
from dlm.models.transformer import TransformerForMaskedLM


class LLaDAModelLM(TransformerForMaskedLM):
    """LLaDA (Nie et al. 2025, arXiv:2502.09992)."""

    config_class = LladaConfig
    # Order matters: `ff_out` names both the vocabulary projection and the MLP's down projection.
    renamings = (
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


class ILLaDAForCausalLM(TransformerForMaskedLM):
    """iLLaDA (Nie et al. 2026, arXiv:2606.25331)."""

    config_class = ILladaConfig
