"""Identify a network: its weights, its configuration and the facts that decoding uses."""

import hashlib
from typing import Any

import torch

from dlm.models.identity import configuration, digest
from dlm.models.model import Model


def checksum(model: Model) -> str:
    """SHA-256 of every parameter and persistent buffer, hex.

    It covers the name, dtype, shape and all bytes of each, in the order of the state dict. Tensors
    are moved to the CPU one at a time.

    Raises:
        ValueError: a weight is not in memory.
    """
    total = hashlib.sha256()
    for name, weight in model.network.state_dict().items():
        if weight.is_meta:
            raise ValueError(f"weights must be in memory for their checksum, got {name} elsewhere")
        total.update(f"{name} {weight.dtype} {list(weight.shape)} ".encode())
        values = weight.detach().contiguous().cpu().flatten()
        total.update(values.view(torch.uint8).numpy())
    return total.hexdigest()


def facts(model: Model) -> dict[str, Any]:
    """Everything that a network's outputs depend on, besides its input; JSON-serialisable.

    Raises:
        ValueError: a weight is not in memory.
    """
    spec = model.spec
    return {
        "weights": checksum(model),
        "config": digest(configuration(model.network)),
        "dtype": str(model.network.dtype).removeprefix("torch."),
        "family": spec.family,
        "vocab_size": spec.vocab_size,
        "mask_id": spec.mask_id,
        "eos_id": spec.eos_id,
        "stop_ids": list(spec.stop_ids),
        "unused": list(spec.unused),
        "never": list(spec.never),
        "suffix": list(spec.suffix),
        "shift": spec.shift,
        "block_size": spec.block_size,
        **({"anchored": True} if spec.anchored else {}),
    }
