"""Digests that identify a model, so that a run is not continued with another one."""

import json
import zlib
from hashlib import sha256
from typing import Any

from dlm.kernels import int8
from dlm.models.family import SETTLED

PROBED = 256  # values of each weight that a fingerprint reads, at least
READ_SO = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
VOLATILE = (*READ_SO, SETTLED)
"""Keys of a configuration that depend on how it was read or written, not on the network."""


def configuration(network: Any) -> dict[str, Any]:
    """A network's configuration as JSON data, for what weights do not hold: angles, epsilons."""
    kept = {key: value for key, value in network.config.to_dict().items() if key not in VOLATILE}
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return found


def fingerprint(network: Any) -> str:
    """CRC-32 over a sample of every weight, which detects other weights under the same name.

    If the network is split over processes, each weight is gathered, which all processes take part
    in.

    Raises:
        ValueError: a weight is not in memory.
    """
    samples: dict[str, bytes] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        own: dict[str, Any] = {}  # one module at a time: some modules copy weights to save them
        module._save_to_state_dict(own, f"{path}." if path else "", False)
        samples |= {name: sample(name, weight) for name, weight in own.items()}
    crc = 0
    for name in sorted(samples):
        crc = zlib.crc32(name.encode() + samples[name], crc)
    return f"{crc:08x}"


def sample(name: str, weight: Any) -> bytes:
    """The bytes of evenly spaced values of a weight, as float32.

    Raises:
        ValueError: the weight is not in memory.
    """
    if weight.is_meta:
        raise ValueError(f"weights must be in memory for their digest, got {name} elsewhere")
    whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    flat = whole.detach().flatten()
    some = flat[:: max(1, flat.numel() // PROBED)].float().cpu().contiguous()
    made: bytes = some.numpy().tobytes()
    return made


def precision(network: Any) -> str:
    """The dtype of a network's weights, and the quantisation method if there is one."""
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    method = getattr(getattr(network.config, "quantization_config", None), "quant_method", None)
    on_cpu = next(network.parameters()).device.type == "cpu"
    if method == "w8a8" and on_cpu and int8.steps() != int8.ACTIVATIONS[0]:
        return f"{dtype}, w8a8 of {int8.steps()} steps"  # other processors use more steps
    return dtype if method is None else f"{dtype}, {getattr(method, 'value', method)}"


def rules(tokenizer: Any) -> str:
    """SHA-256, hex, of how a tokenizer turns text into ids: vocabulary, merges, other steps.

    Padding and truncation are left out, because callers change them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(tokenizer.get_vocab())
    return digest(json.loads(backend.to_str()) | {"padding": None, "truncation": None})


def digest(value: Any) -> str:
    """SHA-256, hex, of a value as JSON."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
