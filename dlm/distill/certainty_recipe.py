"""The options that determine the result of a certainty-forcing distillation."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from dlm.models.adapter import peft_library
from dlm.models.int8 import refuse_quantized
from dlm.options import boolean, integer, known, number
from dlm.training.seeds import LARGEST_SEED

LAYERS = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
"""Adapted by default, where present: attention and MLP, no expert router or vocabulary layer."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the result besides the model, the targets and the hardware.

    The defaults are those of dParallel for LLaDA, except `steps`: the authors train six epochs on
    eight devices. For Dream they use rank and alpha 32, block_length None, weight 1, schedule
    "cosine" and warmup 0.05.
    """

    steps: int = 1000  # optimizer updates
    batch_size: int = 1  # rows of a forward pass, on each device
    accumulate: int = 8  # forward passes of an update, on each device
    block_length: int | None = 32  # tokens; None masks the whole response at random
    ratio: float = 0.5  # share of the active block that the first view masks
    temperature: float = 0.5  # of the entropy term
    weight: float = 2.0  # of the entropy term
    rank: int = 128
    alpha: float = 128.0  # the adapter's output is scaled by alpha / rank
    layers: tuple[str, ...] | None = None  # last part of module names; None for those of LAYERS
    learning_rate: float = 2e-5
    schedule: str = "constant"  # or "cosine", which decays to 0
    warmup: float = 0.0  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    precision: str = "float32"  # or "bfloat16", autocast
    checkpointing: bool = False  # recompute activations instead of keeping them
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "rank"):
            integer(name, getattr(self, name), least=1)
        integer("seed", self.seed, least=0, most=LARGEST_SEED)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)
        for name in ("ratio", "warmup"):
            number(name, getattr(self, name), least=0.0, most=1.0)
        for name in ("weight", "weight_decay"):
            number(name, getattr(self, name), least=0.0)
        for name in ("temperature", "alpha", "learning_rate", "clip"):
            if number(name, getattr(self, name), least=0.0) == 0:
                raise ValueError(f"{name} must be > 0, got 0")
        known("schedule", self.schedule, ("constant", "cosine"))
        known("precision", self.precision, ("float32", "bfloat16"))
        boolean("checkpointing", self.checkpointing)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant or a half cosine."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warm) / max(self.steps - warm, 1)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


def adapter_config(network: Any, recipe: Recipe) -> Any:
    """The LoRA configuration of a recipe.

    Raises:
        ValueError: the network has none of the layers, or its weights are 8-bit integers.
    """
    refuse_quantized(network, "an adapter")
    wanted = LAYERS if recipe.layers is None else recipe.layers
    linear = {n for n, module in network.named_modules() if isinstance(module, nn.Linear)}
    found = {name for name in linear if name.rpartition(".")[2] in wanted}
    if not found:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ValueError(f"layers must be among {names}, got {', '.join(wanted)}")
    return peft_library().LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules={name.rpartition(".")[2] for name in found},
    )
