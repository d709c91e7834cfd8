"""Recommended settings of checkpoints, from their authors' model cards and quick starts.

Like the rest of this package, this module needs only the standard library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dlm.published.setting import lengths


@dataclass(frozen=True, slots=True)
class Recommended:
    """The recommended settings of one or more checkpoints."""

    checkpoints: tuple[str, ...]  # names on the Hub
    options: Mapping[str, Any]  # of `dlm.generate`, including the decoder
    source: str
    note: str = ""  # what else the source says


GREEDY: Final = {"decoder": "low_confidence", "temperature": 0.0}
"""One token per forward pass: without `steps`, the budget is the number of generated tokens."""
EXACT: Final = {"cache": "prefix"}
"""Exact for block attention, so it only saves time; the authors also use a cache."""


def _dream(gen_length: int, temperature: float) -> dict[str, Any]:
    """Options of Dream's own loop, with as many steps as tokens."""
    own = {"decoder": "dream", "decoder_options": {"alg": "entropy"}}
    return {**own, **lengths(gen_length), "temperature": temperature, "top_p": 0.95}


def _refined(threshold: float, **more: Any) -> dict[str, Any]:
    """Options of a decoder that commits above a threshold, one attention block after another."""
    options = {"decoder_options": {"threshold": threshold}, **EXACT, **more}
    return {"decoder": "block_refinement", **options}


def _certain(threshold: float) -> dict[str, Any]:
    """Options of dParallel."""
    own = {"decoder": "entropy_threshold", "decoder_options": {"threshold": threshold}}
    return {**own, **lengths(256, 32), "temperature": 0.0}


def _several(variant: str, threshold: float) -> dict[str, Any]:
    """Options of d3LLM."""
    own = {"threshold": threshold, "block_add_threshold": 0.1, "sub_block_length": 32}
    sizes = {**lengths(256), "temperature": 0.0}
    return {"decoder": "multi_block", "decoder_options": {**own, "variant": variant}, **sizes}


_D3LLM = "README and evaluation scripts of hao-ai-lab/d3LLM"
_TALKS = ("JetLM/SDAR-1.7B-Chat", "JetLM/SDAR-4B-Chat", "JetLM/SDAR-8B-Chat")
_SIZES = ("mini", "flash")

RECOMMENDED: Final[tuple[Recommended, ...]] = (
    Recommended(
        ("GSAI-ML/LLaDA-8B-Instruct",),
        {**GREEDY, **lengths(128, 32)},
        "chat.py of ML-GSAI/LLaDA",
    ),
    Recommended(
        ("inclusionAI/LLaDA-MoE-7B-A1B-Instruct",),
        {**GREEDY, **lengths(128, 32)},
        "its card",
        'with the system prompt "You are a helpful AI assistant."',
    ),
    Recommended(
        ("GSAI-ML/iLLaDA-8B-Instruct",),
        {**GREEDY, **lengths(2048, 32)},
        "evaluation script of ML-GSAI/LLaDA, gsm8k",
        "the script shows the network no block before it is decoded, and raises the logit of the "
        "end of thought as an answer gets long",
    ),
    Recommended(
        ("Zigeng/dParallel-LLaDA-8B-instruct", "Zigeng/dParallel_Dream_7B_Instruct"),
        _certain(0.5),
        "README and Dream/generate.py of czg1225/dParallel",
    ),
    Recommended(("d3LLM/d3LLM_LLaDA",), _several("llada", 0.5), _D3LLM),
    Recommended(("d3LLM/d3LLM_Dream_Coder",), _several("dream", 0.5), _D3LLM),
    Recommended(("d3LLM/d3LLM_Dream",), _several("dream", 0.4), _D3LLM, "threshold 0.5 for code"),
    Recommended(
        tuple(f"inclusionAI/LLaDA2.0-{size}" for size in _SIZES),
        _refined(0.95, block_length=32, temperature=0.0),
        "their cards; the threshold is the default of their code",
    ),
    Recommended(
        tuple(f"inclusionAI/LLaDA2.1-{size}" for size in _SIZES),
        {
            **_refined(0.7, block_length=32, temperature=0.0),
            "decoder_options": {
                "threshold": 0.7, "editing_threshold": 0.5, "max_post_steps": 16,
            },
        },
        "their cards, Quality Mode",
        "Speed Mode: threshold 0.5, editing_threshold 0.0; answers of up to 16384 tokens",
    ),
    Recommended(
        ("Dream-org/Dream-v0-Instruct-7B",), _dream(512, 0.2), "README of DreamLM/Dream"
    ),
    Recommended(
        ("Dream-org/Dream-Coder-v0-Instruct-7B",),
        _dream(768, 0.1),
        "README of DreamLM/Dream-Coder",
    ),
    Recommended(
        ("apple/DiffuCoder-7B-Instruct",),
        _dream(256, 0.3),
        "inference demo of apple/ml-diffucoder",
        'with the system prompt "You are a helpful assistant."',
    ),
    Recommended(("apple/DiffuCoder-7B-cpGRPO",), _dream(256, 0.4), "its card, quoted by others"),
    Recommended(
        (*_TALKS, "JetLM/SDAR-30B-A3B-Chat"),
        _refined(0.9, gen_length=256, temperature=1.0),
        "README of JetAstra/SDAR, JetEngine",
        "its benchmarks are greedy, one token a forward",
    ),
    Recommended(
        ("JetLM/SDAR-8B-Chat-b32",),
        _refined(0.9, gen_length=256, temperature=1.0),
        "README of JetAstra/SDAR, JetEngine, which speaks of blocks of 4",
        "its benchmarks are greedy, one token a forward",
    ),
    Recommended(
        ("JetLM/SDAR-30B-A3B-Sci",),
        {**GREEDY, **EXACT, "temperature": 1.0},
        "README of JetAstra/SDAR, sampling strategy of its benchmarks",
    ),
    Recommended(
        ("Gen-Verse/TraDo-4B-Instruct", "Gen-Verse/TraDo-8B-Instruct"),
        _refined(0.9, gen_length=200, temperature=1.0),
        "README of Gen-Verse/dLLM-RL",
    ),
    Recommended(
        ("radicalnumerics/RND1-Base-0910",),
        {
            "decoder": "dream", "decoder_options": {"alg": "entropy"}, **lengths(256),
            "temperature": 0.01,
        },
        "README of RadicalNumerics/RND1",
        'a question is put as "Question: ...\\nAnswer:"; there padding stands behind the answer',
    ),
    Recommended(
        tuple(f"Efficient-Large-Model/Fast_dLLM_v2_{size}" for size in ("1.5B", "7B")),
        {
            "decoder": "threshold", "decoder_options": {"threshold": 0.9}, **lengths(2048, 8),
            **EXACT,
        },
        "v2/run_chatbot.py of NVlabs/Fast-dLLM, whose small blocks are blocks here",
        "there the forward that sees a block of 32 complete commits the first token of the next",
    ),
    Recommended(
        ("Salesforce/CoDA-v0-Instruct",),
        {
            "decoder": "dream", "decoder_options": {"alg": "entropy"}, **lengths(256),
            "steps": 128, "temperature": 0.0, "position_temperature": 0.1,
        },
        "README of SalesforceAIResearch/CoDA, what its server starts with",
        "its benchmarks take one token a forward, of at most 768",
    ),
    Recommended(
        ("ByteDance-Seed/Stable-DiffCoder-8B-Instruct",),
        {**GREEDY, **lengths(512, 4), **EXACT},
        "README of ByteDance-Seed/Stable-DiffCoder",
    ),
    Recommended(
        ("diffusionfamily/diffullama",),
        {
            "decoder": "ancestral", "temperature": 0.9, "top_p": 0.9, "steps": 64,
            **lengths(2047), "stop_at_eos": False,
        },
        "inf_diffullama.py of HKUNLP/DiffuLLaMA",
        "behind a begin of text: 2,048 tokens in all",
    ),
    Recommended(
        ("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",),
        {**GREEDY, **lengths(128, 64)},
        "its card",
    ),
    Recommended(
        ("dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",),
        {**GREEDY, **lengths(256, 32), **EXACT},
        "evaluation of ZHZisZZ/dllm, examples/a2d",
        "there blocks begin where the prompt ends; here, as in training, at multiples of 32",
    ),
    Recommended(
        ("tencent/WeDLM-7B-Instruct", "tencent/WeDLM-8B-Instruct"),
        {
            "decoder": "wedlm", "decoder_options": {"sliding": True}, **lengths(512, 1),
            "temperature": 0.0, **EXACT,
        },
        "README of Tencent/WeDLM, with what its engine does by default",
        "with blocks of 1 a cache holds all that is decoded without a gap, as there",
    ),
    Recommended(
        ("kuleshov-group/mdlm-owt",),
        {
            "decoder": "ancestral", "temperature": 1.0, "steps": 1000, **lengths(1023),
            "stop_at_eos": False,
        },
        "README of kuleshov-group/mdlm",
        "behind a begin of text: 1,024 tokens in all",
    ),
)  # fmt: skip
