"""A decoding engine for masked-diffusion language models.

import dlm

model = dlm.load()
print(dlm.generate(model, [{"role": "user", "content": "..."}]).texts[0])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dlm._version import __version__
from dlm.models.registry import register

if TYPE_CHECKING:
    from dlm import decoders, kernels
    from dlm import eval as eval
    from dlm import types as types
    from dlm.constraints.constraint import Constraint
    from dlm.execution import release
    from dlm.generation import generate, generate_each, stream
    from dlm.huggingface import (
        DiffusionGenerationConfig,
        DiffusionGenerationOutput,
        MaskingCollator,
        TextDiffusionStreamer,
        W8A8Config,
        as_model,
    )
    from dlm.infilling import infill, infill_each
    from dlm.likelihood import log_likelihood, log_likelihoods
    from dlm.models.loading import load
    from dlm.models.model import Model
    from dlm.outputs import Generation, Snapshot
    from dlm.player import playback
    from dlm.prompt_cache import PromptCache
    from dlm.prompts import encode_infill, encode_prompts
    from dlm.questions import Likelihood
    from dlm.recommendation import recommended
    from dlm.trajectory import Trajectory

__all__ = [
    "Constraint",
    "DiffusionGenerationConfig",
    "DiffusionGenerationOutput",
    "Generation",
    "Likelihood",
    "MaskingCollator",
    "Model",
    "PromptCache",
    "Snapshot",
    "TextDiffusionStreamer",
    "Trajectory",
    "W8A8Config",
    "__version__",
    "as_model",
    "decoders",
    "encode_infill",
    "encode_prompts",
    "generate",
    "generate_each",
    "infill",
    "infill_each",
    "kernels",
    "load",
    "log_likelihood",
    "log_likelihoods",
    "playback",
    "recommended",
    "release",
    "stream",
]

_HOMES = {
    "Constraint": "dlm.constraints.constraint",
    "DiffusionGenerationConfig": "dlm.huggingface.config",
    "DiffusionGenerationOutput": "dlm.huggingface.generation",
    "Generation": "dlm.outputs",
    "Likelihood": "dlm.questions",
    "MaskingCollator": "dlm.huggingface.masking",
    "Model": "dlm.models.model",
    "PromptCache": "dlm.prompt_cache",
    "Snapshot": "dlm.outputs",
    "TextDiffusionStreamer": "dlm.huggingface.streamers",
    "Trajectory": "dlm.trajectory",
    "W8A8Config": "dlm.huggingface.quantization",
    "as_model": "dlm.huggingface.generation",
    "encode_infill": "dlm.prompts",
    "encode_prompts": "dlm.prompts",
    "generate": "dlm.generation",
    "generate_each": "dlm.generation",
    "infill": "dlm.infilling",
    "infill_each": "dlm.infilling",
    "load": "dlm.models.loading",
    "log_likelihood": "dlm.likelihood",
    "log_likelihoods": "dlm.likelihood",
    "playback": "dlm.player",
    "recommended": "dlm.recommendation",
    "release": "dlm.execution",
    "stream": "dlm.generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch alone takes seconds."""
    if name in ("decoders", "eval", "kernels", "types"):
        return import_module(f"dlm.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    from dlm.foreign import FUNCTIONS  # for messages alone

    hint = f": {FUNCTIONS[name]}" if name in FUNCTIONS else ""
    raise AttributeError(f"module 'dlm' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted([*__all__, "eval", "types"])


register()
