"""The published checkpoints that can be loaded, and how each was verified."""

from dataclasses import dataclass

BUILT_IN_NAME = "built-in"
"""The name of the model that comes with the package."""
LOGITS = "official logits, at a small size"
EQUATIONS = "published equations, at a small size"
CARD = "see its card"
MINISTRAL = "Ministral 3 of transformers, at a small size"
QWEN2 = "Qwen2 of transformers, at a small size"
QWEN3 = "Qwen3 of transformers, at a small size"
LLAMA = "Llama of transformers, at a small size"
ASK = "load it with family='open-dcoder'"
ORDINARY = "load it with family='diffullama'; its mask is a token of text, which no prompt may hold"
EDITS = "its own loop also edits tokens"
SEEDS = "its own loop takes the first token of a block from a causal pass"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of `dlm models`."""

    name: str  # what `dlm.load` takes
    family: str
    parameters: int | None  # None if no file of the checkpoint was seen
    licence: str
    verified: str
    note: str = ""


LLADA_8B = 8_015_581_184
DREAM_7B = 7_615_616_512
QWEN3_4B = 4_411_424_256
QWEN3_8B = 8_190_735_360
QWEN3_30B = 30_532_122_624
LLADA_MOE_7B = 7_356_880_896
CODA = 2_031_739_904
SEED_CODER = 8_250_462_208
LLADA2_MINI = 16_255_643_392
LLADA2_FLASH = 102_889_705_216
NEMOTRON_3B = 3_831_659_520
NEMOTRON_8B = 8_489_553_920
DIT = 169_627_218

CHECKPOINTS = (
    Checkpoint("GSAI-ML/LLaDA-8B-Base", "llada", LLADA_8B, "MIT", LOGITS),
    Checkpoint("GSAI-ML/LLaDA-8B-Instruct", "llada", LLADA_8B, "MIT", LOGITS),
    Checkpoint("GSAI-ML/LLaDA-1.5", "llada", LLADA_8B, "MIT", LOGITS),
    Checkpoint("Zigeng/dParallel-LLaDA-8B-instruct", "llada", LLADA_8B, CARD, LOGITS),
    Checkpoint("d3LLM/d3LLM_LLaDA", "llada", LLADA_8B, CARD, LOGITS),
    Checkpoint("GSAI-ML/iLLaDA-8B-Base", "illada", 7_615_025_152, "Apache-2.0", EQUATIONS),
    Checkpoint("GSAI-ML/iLLaDA-8B-Instruct", "illada", 7_615_025_152, "Apache-2.0", EQUATIONS),
    Checkpoint("inclusionAI/LLaDA-MoE-7B-A1B-Base", "llada-moe", LLADA_MOE_7B, CARD, LOGITS),
    Checkpoint("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", "llada-moe", LLADA_MOE_7B, CARD, LOGITS),
    Checkpoint("inclusionAI/LLaDA2.0-mini", "llada2", LLADA2_MINI, CARD, LOGITS),
    Checkpoint("inclusionAI/LLaDA2.0-flash", "llada2", LLADA2_FLASH, CARD, LOGITS),
    *(
        Checkpoint(f"inclusionAI/LLaDA2.0-{size}-{kind}", "llada2", parameters, CARD, LOGITS)
        for size, parameters in (("mini", LLADA2_MINI), ("flash", LLADA2_FLASH))
        for kind in ("preview", "CAP")
    ),
    Checkpoint("inclusionAI/LLaDA2.1-mini", "llada2", LLADA2_MINI, CARD, LOGITS, EDITS),
    Checkpoint("inclusionAI/LLaDA2.1-flash", "llada2", LLADA2_FLASH, CARD, LOGITS, EDITS),
    Checkpoint("Dream-org/Dream-v0-Base-7B", "dream", DREAM_7B, "Apache-2.0", LOGITS),
    Checkpoint("Dream-org/Dream-v0-Instruct-7B", "dream", DREAM_7B, "Apache-2.0", LOGITS),
    Checkpoint("Zigeng/dParallel_Dream_7B_Instruct", "dream", DREAM_7B, CARD, LOGITS),
    Checkpoint("d3LLM/d3LLM_Dream", "dream", DREAM_7B, CARD, LOGITS),
    Checkpoint("d3LLM/d3LLM_Dream_Coder", "dream", DREAM_7B, CARD, LOGITS),
    Checkpoint("Dream-org/Dream-Coder-v0-Base-7B", "dream", DREAM_7B, CARD, LOGITS),
    Checkpoint("Dream-org/Dream-Coder-v0-Instruct-7B", "dream", DREAM_7B, CARD, LOGITS),
    Checkpoint(
        "Dream-org/DreamOn-v0-7B",
        "dream",
        DREAM_7B,
        CARD,
        LOGITS,
        "its own loop also changes lengths",
    ),
    Checkpoint("apple/DiffuCoder-7B-Base", "dream", DREAM_7B, "apple-amlr", LOGITS),
    Checkpoint("apple/DiffuCoder-7B-Instruct", "dream", DREAM_7B, "apple-amlr", LOGITS),
    Checkpoint("apple/DiffuCoder-7B-cpGRPO", "dream", DREAM_7B, "apple-amlr", LOGITS),
    Checkpoint("Dream-org/DreamReasoner-8B-Base", "dream-reasoner", QWEN3_8B, CARD, EQUATIONS),
    Checkpoint("Dream-org/DreamReasoner-8B", "dream-reasoner", QWEN3_8B, CARD, EQUATIONS),
    Checkpoint("JetLM/SDAR-1.7B-Chat", "sdar", None, "MIT", LOGITS),
    Checkpoint("JetLM/SDAR-4B-Chat", "sdar", QWEN3_4B, "MIT", LOGITS),
    Checkpoint("JetLM/SDAR-8B-Chat", "sdar", QWEN3_8B, "MIT", LOGITS),
    Checkpoint("JetLM/SDAR-8B-Chat-b32", "sdar", QWEN3_8B, "MIT", LOGITS),
    Checkpoint("Gen-Verse/TraDo-4B-Instruct", "sdar", QWEN3_4B, CARD, LOGITS),
    Checkpoint("Gen-Verse/TraDo-8B-Instruct", "sdar", QWEN3_8B, CARD, LOGITS),
    Checkpoint("JetLM/SDAR-30B-A3B-Chat", "sdar-moe", QWEN3_30B, "MIT", EQUATIONS),
    Checkpoint("JetLM/SDAR-30B-A3B-Sci", "sdar-moe", QWEN3_30B, "MIT", EQUATIONS),
    Checkpoint("radicalnumerics/RND1-Base-0910", "rnd1", QWEN3_30B, "Apache-2.0", LOGITS),
    Checkpoint("Efficient-Large-Model/Fast_dLLM_v2_1.5B", "fast-dllm-v2", None, CARD, EQUATIONS),
    Checkpoint("Efficient-Large-Model/Fast_dLLM_v2_7B", "fast-dllm-v2", DREAM_7B, CARD, EQUATIONS),
    Checkpoint("fredzzp/open-dcoder-0.5B", "open-dcoder", 494_032_768, CARD, EQUATIONS, ASK),
    Checkpoint("Salesforce/CoDA-v0-Base", "coda", CODA, "CC-BY-NC-4.0", QWEN3),
    Checkpoint("Salesforce/CoDA-v0-Instruct", "coda", CODA, CARD, QWEN3),
    Checkpoint(
        "ByteDance-Seed/Stable-DiffCoder-8B-Base", "stable-diffcoder", SEED_CODER, "MIT", LLAMA
    ),
    Checkpoint(
        "ByteDance-Seed/Stable-DiffCoder-8B-Instruct", "stable-diffcoder", SEED_CODER, "MIT", LLAMA
    ),
    Checkpoint("diffusionfamily/diffullama", "diffullama", 6_738_415_616, CARD, LLAMA, ORDINARY),
    Checkpoint(
        "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", "a2d-qwen3", 596_049_920, CARD, EQUATIONS
    ),
    Checkpoint(
        "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d-qwen3", 596_049_920, CARD, EQUATIONS
    ),
    Checkpoint(
        "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
        "a2d-qwen2",
        494_032_768,
        CARD,
        EQUATIONS,
    ),
    Checkpoint(
        "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1",
        "a2d-qwen2",
        494_032_768,
        CARD,
        EQUATIONS,
    ),
    *(
        Checkpoint(
            f"nvidia/Nemotron-Labs-Diffusion-{size}{kind}",
            "nemotron-labs-diffusion",
            parameters,
            CARD,
            MINISTRAL,
            SEEDS,
        )
        for size, parameters in (("3B", NEMOTRON_3B), ("8B", NEMOTRON_8B), ("14B", None))
        for kind in ("-Base", "")
    ),
    *(
        Checkpoint(f"tencent/WeDLM-{size}-{kind}", "wedlm", parameters, "Apache-2.0", verified)
        for size, parameters, verified in (("7B", DREAM_7B, QWEN2), ("8B", QWEN3_8B, QWEN3))
        for kind in ("Base", "Instruct")
    ),
    Checkpoint("kuleshov-group/mdlm-owt", "mdlm", DIT, "Apache-2.0", LOGITS),
    Checkpoint("kuleshov-group/bd3lm-owt-block_size4", "bd3lm", DIT, "Apache-2.0", LOGITS),
    Checkpoint("kuleshov-group/bd3lm-owt-block_size8", "bd3lm", DIT, "Apache-2.0", LOGITS),
    Checkpoint("kuleshov-group/bd3lm-owt-block_size16", "bd3lm", DIT, "Apache-2.0", LOGITS),
)
