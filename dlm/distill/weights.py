"""What tells one network from another: weights, configuration, the facts that decoding uses."""

import hashlib
from typing import Any

import torch

from dlm.models.identity import configuration, digest
from dlm.models.model import Model


def checksum(model: Model) -> str:
    """SHA-256 of every parameter and persistent buffer, hex.

    Over the name, dtype, shape and all bytes of each, in the order of the state dict. One tensor
    at a time is brought to the CPU.

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
    """What the answers of a network depend on, beside its input; ready for JSON.

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
