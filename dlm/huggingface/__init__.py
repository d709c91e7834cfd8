"""The Hugging Face interface: `model.generate`, its configuration, output and streamer.

    import dlm
    from transformers import AutoModelForMaskedLM

    network = AutoModelForMaskedLM.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")
    out = network.generate(input_ids, attention_mask=mask, max_new_tokens=128, decoder="saber")

`docs/huggingface.md` explains what each option means here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.huggingface.config import DiffusionGenerationConfig
    from dlm.huggingface.generation import (
        DiffusionGenerationMixin,
        DiffusionGenerationOutput,
        as_model,
    )
    from dlm.huggingface.masking import MaskingCollator
    from dlm.huggingface.quantization import W8A8Config
    from dlm.huggingface.streamers import TextDiffusionStreamer

__all__ = [
    "DiffusionGenerationConfig",
    "DiffusionGenerationMixin",
    "DiffusionGenerationOutput",
    "MaskingCollator",
    "TextDiffusionStreamer",
    "W8A8Config",
    "as_model",
]

_HOMES = {
    "DiffusionGenerationConfig": "config",
    "DiffusionGenerationMixin": "generation",
    "DiffusionGenerationOutput": "generation",
    "MaskingCollator": "masking",
    "TextDiffusionStreamer": "streamers",
    "W8A8Config": "quantization",
    "as_model": "generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES:
        return getattr(import_module(f"dlm.huggingface.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dlm.huggingface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
