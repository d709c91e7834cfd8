"""The mixture-of-experts families, under the class names that their checkpoints declare."""

from dlm.models.moe_configs import Llada2Config, LladaMoeConfig, Rnd1Config, SdarMoeConfig
from dlm.models.transformer import TransformerForMaskedLM


class LLaDAMoEModelLM(TransformerForMaskedLM):
    """LLaDA-MoE (Zhu et al. 2025, arXiv:2509.24389)."""

    config_class = LladaMoeConfig
    packs_experts = True


class LLaDA2MoeModelLM(TransformerForMaskedLM):
    """LLaDA2.0 (Bie et al. 2025, arXiv:2512.15745) and 2.1."""

    config_class = Llada2Config
    packs_experts = True
    # Rounded to half precision, the bias would select other experts.
    _keep_in_fp32_modules_strict = ["expert_bias"]  # noqa: RUF012 (transformers reads a list)
    renamings = (
        (r"^model\.word_embeddings\.", "model.embed_tokens."),
        (r"\.attention\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.attention\.query_layernorm\.", ".self_attn.q_norm."),
        (r"\.attention\.key_layernorm\.", ".self_attn.k_norm."),
        (r"\.attention\.dense\.", ".self_attn.o_proj."),
    )


class RND1LM(TransformerForMaskedLM):
    """RND1 (Radical Numerics 2025)."""

    config_class = Rnd1Config
    packs_experts = True


class SDARMoeForCausalLM(TransformerForMaskedLM):
    """SDAR-30B-A3B (JetAstra 2025, arXiv:2510.06303)."""

    config_class = SdarMoeConfig
    packs_experts = True
