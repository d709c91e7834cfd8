"""The model families: how to recognise their files, and the facts that all checkpoints share.

A family is identified by `(model_type, architectures[0])` in `config.json`, because different
networks share either one. A checkpoint's configuration, tokenizer and name override the facts of
its family.
"""

from typing import Any

from dlm.models.family import Family
from dlm.options import known

QWEN3_ROWS = (151936,)
LING_ROWS = (157184,)
SDAR_NAMES = ((r"^sdar-[\d.]+b(?:-a\d+b)?-(?:chat|sci)-b(8|16|32|64)$", None),)
A2D_NAMES = ((r"-diffusion-bd3lm", 32),)

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llada",
            "llada",
            ("LLaDAModelLM", "LLaDAModel"),
            "dlm.models.configs:LladaConfig",
            "dlm.models.llada:LLaDAModelLM",
            vocabularies=(126464,),
            mask_id=126336,
            mask_token="<|mdm_mask|>",
            stop_ids=(126081, 126348),
            stop_tokens=("<|eot_id|>",),
            tokens=126349,
            anchors=True,
        ),
        Family(
            "illada",
            "illada",
            ("ILLaDAForCausalLM", "ILLaDAModel"),
            "dlm.models.configs:ILladaConfig",
            "dlm.models.llada:ILLaDAForCausalLM",
            vocabularies=(155136,),
            mask_id=5,
            mask_token="<[MASK]>",
            stop_ids=(2,),
            any_type=True,
        ),
        Family(
            "llada-moe",
            "llada",
            ("LLaDAMoEModelLM", "LLaDAMoEModel"),
            "dlm.models.moe_configs:LladaMoeConfig",
            "dlm.models.moe:LLaDAMoEModelLM",
            vocabularies=LING_ROWS,
            mask_id=156895,
            mask_token="<|mask|>",
            stop_ids=(156892,),
            stop_tokens=("<|role_end|>",),
        ),
        Family(
            "llada2",
            "llada2_moe",
            ("LLaDA2MoeModelLM", "LLaDA2MoeModel"),
            "dlm.models.moe_configs:Llada2Config",
            "dlm.models.moe:LLaDA2MoeModelLM",
            vocabularies=LING_ROWS,
            mask_id=156895,
            mask_token="<|mask|>",
            stop_ids=(156892,),
            stop_tokens=("<|role_end|>",),
            block_size=32,
            block_field="block_size",
        ),
        Family(
            "dream",
            "Dream",
            ("DreamModel",),
            "dlm.models.qwen_configs:DreamConfig",
            "dlm.models.qwen:DreamModel",
            vocabularies=(152064,),
            mask_id=151666,
            mask_token="<|mask|>",
            stop_ids=(151643, 151645),
            stop_tokens=("<|im_end|>", "<|dlm_pad|>"),  # the second ends DiffuCoder's texts
            expand_token="<|expand|>",  # of DreamOn
            tokens=151667,
            shift=True,
            anchors=True,
        ),
        Family(
            "dream-reasoner",
            "Dream",
            ("DreamForCausalLM",),
            "dlm.models.qwen_configs:DreamReasonerConfig",
            "dlm.models.qwen:DreamForCausalLM",
            vocabularies=QWEN3_ROWS,
            mask_id=151669,
            stop_tokens=("<|im_end|>",),
            tokens=151670,
            block_size=32,
            block_field="block_size",
        ),
        Family(
            "sdar",
            "sdar",
            ("SDARForCausalLM", "SDARModel"),
            "dlm.models.qwen_configs:SdarConfig",
            "dlm.models.qwen:SDARForCausalLM",
            vocabularies=QWEN3_ROWS,
            mask_id=151669,
            stop_ids=(151643, 151645),
            tokens=151670,
            block_size=4,
            block_field="block_size",
            block_names=SDAR_NAMES,
        ),
        Family(
            "sdar-moe",
            "sdar_moe",
            ("SDARMoeForCausalLM", "SDARMoeModel"),
            "dlm.models.moe_configs:SdarMoeConfig",
            "dlm.models.moe:SDARMoeForCausalLM",
            vocabularies=QWEN3_ROWS,
            mask_id=151669,
            stop_ids=(151643, 151645),
            tokens=151670,
            block_size=4,
            block_field="block_size",
            block_names=SDAR_NAMES,
        ),
        Family(
            "rnd1",
            "rnd1",
            ("RND1LM", "RND1Model"),
            "dlm.models.moe_configs:Rnd1Config",
            "dlm.models.moe:RND1LM",
            vocabularies=QWEN3_ROWS,
            mask_id=151669,
            stop_ids=(151645,),
            tokens=151670,
            shift=True,
        ),
        Family(
            "fast-dllm-v2",
            "Fast_dLLM_Qwen",
            ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_QwenModel"),
            "dlm.models.qwen_configs:FastDllmQwenConfig",
            "dlm.models.qwen:Fast_dLLM_QwenForCausalLM",
            vocabularies=(152064, 151936),
            mask_id=151665,
            mask_token="|<MASK>|",
            stop_ids=(151645,),
            tokens=151666,
            shift=True,
            block_size=32,
            block_field="bd_size",
        ),
        Family(
            "open-dcoder",
            "qwen2",
            ("Qwen2ForCausalLM",),
            "dlm.models.qwen_configs:OpenDcoderConfig",
            "dlm.models.qwen:Qwen2ForCausalLM",
            vocabularies=(151936,),
            mask_id=151665,
            stop_ids=(151643, 151645),
            tokens=151666,
            shift=True,
            opt_in=True,
        ),
        Family(
            "coda",
            "CoDA",
            ("CoDALanguageModel",),
            "dlm.models.qwen_configs:CodaConfig",
            "dlm.models.qwen:CoDALanguageModel",
            vocabularies=QWEN3_ROWS,
            mask_id=151669,
            stop_ids=(151643, 151645),
            tokens=151670,
            shift=True,
        ),
        Family(  # first of its model type: without an architecture, a file is taken for a Llama's
            "diffullama",
            "llama",
            ("LlamaForCausalLM",),
            "dlm.models.qwen_configs:DiffuLlamaConfig",
            "dlm.models.qwen:LlamaForCausalLM",
            vocabularies=(32000,),
            mask_id=811,  # an ordinary token of Llama 2: the vocabulary was not extended
            stop_ids=(2,),
            shift=True,
            opt_in=True,
        ),
        Family(
            "stable-diffcoder",
            "llama",
            ("StableDiffcoderForCausalLM",),
            "dlm.models.qwen_configs:StableDiffCoderConfig",
            "dlm.models.qwen:StableDiffcoderForCausalLM",
            vocabularies=(155136,),
            mask_id=5,
            mask_token="<[MASK_TOKEN]>",
            stop_ids=(2,),
            block_size=4,
            block_field="block_size",
        ),
        Family(
            "a2d-qwen2",
            "a2d-qwen2",
            ("A2DQwen2LMHeadModel", "A2DQwen2Model"),
            "dlm.models.qwen_configs:A2dQwen2Config",
            "dlm.models.qwen:A2DQwen2LMHeadModel",
            mask_token="<|mask|>",
            stop_tokens=("<|im_end|>",),
            block_field="block_size",
            block_names=A2D_NAMES,
        ),
        Family(
            "a2d-qwen3",
            "a2d-qwen3",
            ("A2DQwen3LMHeadModel", "A2DQwen3Model"),
            "dlm.models.qwen_configs:A2dQwen3Config",
            "dlm.models.qwen:A2DQwen3LMHeadModel",
            mask_token="<|mask|>",
            chat_options=(("enable_thinking", False),),
            stop_tokens=("<|im_end|>",),
            block_field="block_size",
            block_names=A2D_NAMES,
        ),
        Family(
            "a2d-llama",
            "a2d-llama",
            ("A2DLlamaLMHeadModel", "A2DLlamaModel"),
            "dlm.models.qwen_configs:A2dLlamaConfig",
            "dlm.models.qwen:A2DLlamaLMHeadModel",
            mask_token="<|mask|>",
            stop_tokens=("<|eot_id|>",),
            block_field="block_size",
            block_names=A2D_NAMES,
        ),
        Family(
            "nemotron-labs-diffusion",
            "nemotron_labs_diffusion",
            ("NemotronLabsDiffusionModel",),
            "dlm.models.nemotron_configs:NemotronLabsDiffusionConfig",
            "dlm.models.nemotron:NemotronLabsDiffusionModel",
            vocabularies=(131072,),
            mask_id=100,
            block_size=32,
            block_field="block_size",
            causal=True,
        ),
        Family(
            "wedlm",
            "wedlm",
            ("WeDLMForCausalLM",),
            "dlm.models.qwen_configs:WeDLMConfig",
            "dlm.models.qwen:WeDLMForCausalLM",
            stop_tokens=("<|im_end|>",),
            causal=True,
            reordered=True,
        ),
        Family(
            "mdlm",
            "mdlm",
            ("MDLM",),
            "dlm.models.dit_configs:MdlmConfig",
            "dlm.models.dit:MDLM",
            any_architecture=True,
            tokenizer="gpt2",
        ),
        Family(
            "bd3lm",
            "bd3lm",
            ("BD3LM",),
            "dlm.models.dit_configs:Bd3lmConfig",
            "dlm.models.dit:BD3LM",
            block_size=4,
            block_field="block_size",
            block_switch="cross_attn",
            block_names=((r"^bd3lm.*block_size(\d+)", None),),
            any_architecture=True,
            tokenizer="gpt2",
        ),
    )
}

ENCODER = Family(
    "encoder",
    "",  # any model type for which transformers has a masked language model
    (),
    "transformers:AutoConfig",
    "dlm.models.encoder:Encoder",
)
"""Masked language models such as BERT: networks of transformers, with facts from tokenizers."""

REFUSED = {
    "diffusion_gemma": "its noise is random tokens instead of masks",
    "lfm2": "its block diffusion starts from random tokens instead of masks",
    "nemotron_labs_diffusion_vlm": "it reads images, too",
    "sedd": "it predicts ratios of probabilities at a noise level that unmasking policies lack",
}
"""Related model types that cannot be decoded here, with the reason."""


def find(config_dict: dict[str, Any], family: str | None = None) -> Family:
    """Find the family of a `config.json`.

    If `architectures` is missing, experts distinguish LLaDA-MoE from LLaDA, and a block size
    together with a head width distinguishes DreamReasoner from Dream.

    Args:
        config_dict: the contents of the file.
        family: the name that the user gave, if any.

    Raises:
        ValueError: the file belongs to no family, to another than the one named, or to one that
            the user has to name.
    """
    model_type = config_dict.get("model_type") or ("sedd" if "graph" in config_dict else "")
    declared = (config_dict.get("architectures") or [""])[0] or ""
    if family is not None:
        asked = FAMILIES[known("family", family, FAMILIES)]
        if not (asked.any_type or asked.model_type == model_type) or not (
            asked.any_architecture or declared in ("", *asked.architectures)
        ):
            what = f"family {family!r} has model_type {asked.model_type!r} and architectures[0] of"
            names = " or ".join(asked.architectures)
            raise ValueError(f"{what} {names}, got {model_type!r} and {declared!r}")
        return asked
    return by_type(model_type, declared or undeclared(model_type, config_dict))


def undeclared(model_type: str, config_dict: dict[str, Any]) -> str:
    """The architecture to assume for a configuration that names none."""
    if model_type == "llada" and "num_experts" in config_dict:
        return "LLaDAMoEModelLM"
    if model_type == "Dream" and {"block_size", "head_dim"} <= config_dict.keys():
        return "DreamForCausalLM"
    return next((f.architectures[0] for f in FAMILIES.values() if f.model_type == model_type), "")


def by_type(model_type: str, architecture: str) -> Family:
    """The family of a model type and an architecture.

    Raises:
        ValueError: there is none, or it has to be named by the user.
    """
    same = [family for family in FAMILIES.values() if family.model_type == model_type]
    ours = [f for f in FAMILIES.values() if f.any_type and architecture in f.architectures]
    if not same and not ours:
        return other(model_type, architecture)
    for found in [*same, *ours]:
        if architecture in found.architectures or found.any_architecture:
            if found.opt_in:
                raise ValueError(
                    f"model_type {model_type!r} is an autoregressive network unless you know that "
                    f"this checkpoint is {found.name}: then pass family={found.name!r}"
                )
            return found
    names = ", ".join(sorted(name for family in same for name in family.architectures))
    what = f"architectures[0] of model_type {model_type!r}"
    raise ValueError(f"{what} must be one of {names}, got {architecture!r}")


def other(model_type: str, architecture: str) -> Family:
    """`ENCODER` for a masked language model of transformers.

    Raises:
        ValueError: it is none; the message says why there is no family.
    """
    reason = REFUSED.get(model_type)
    if reason is not None:
        raise ValueError(f"model_type {model_type!r} cannot be decoded here: {reason}")
    if "ForCausalLM" not in architecture:
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return ENCODER
    listed = ", ".join(FAMILIES)
    hint = " (an autoregressive network?)" if "ForCausalLM" in architecture else ""
    raise ValueError(
        f"model_type {model_type!r} with architectures[0] {architecture!r}{hint} is not a "
        f"masked-diffusion family known here. Known: {listed}, and the masked language models of "
        "transformers"
    )


def family_of(config: Any) -> Family:
    """The family of a configuration object; `ENCODER` if it is not one of ours."""
    home = f"{type(config).__module__}:{type(config).__name__}"
    return next((family for family in FAMILIES.values() if family.config == home), ENCODER)
