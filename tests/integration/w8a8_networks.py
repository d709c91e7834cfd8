"""Networks in 8-bit integers, and what they are compared by."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import dlm
from dlm.distill.certainty_recipe import Recipe, adapter_config
from dlm.models.adapter import wrap, write
from dlm.models.int8 import layers_of
from dlm.models.linear import Linear
from dlm.models.model import Model

IDS = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19, 5, 6, 7]])


def load(folder: Path | str, **options: Any) -> Model:
    asked = {"dtype": "float32", "quantization_config": dlm.W8A8Config()} | options
    return dlm.load(folder, **asked)


def linear(model: Model) -> set[str]:
    layers = model.network.named_modules()
    return {name for name, module in layers if type(module) in (nn.Linear, Linear)}


def rounded(network: nn.Module) -> dict[str, str]:
    """Layers of integers, and their kinds."""
    return {name: type(layer).__name__ for name, layer in layers_of(network).items()}


def same(one: Model, other: Model) -> bool:
    """Whether two hold the same weights, integers and scales.

    What they give may differ: a file that is mapped lies elsewhere in memory than one that is read,
    and torch's sums of float32 go by where numbers lie.
    """
    mine, theirs = one.network.state_dict(), other.network.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name])
        for name in mine
    )


def write_adapter(model: Model, recipe: Recipe, folder: Path) -> None:
    """Put an adapter that changes something into a network, and write it down."""
    torch.manual_seed(1)
    wrapped = wrap(model.network, adapter_config(model.network, recipe))
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    write(wrapped, folder, None)
