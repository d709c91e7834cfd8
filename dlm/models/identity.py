"""What tells one model from another where a run goes on, beside the weights."""

import json
import zlib
from hashlib import sha256
from typing import Any

PROBED = 256  # values of each weight that a fingerprint reads
VOLATILE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that differ by how it was read or written, not by the network."""


def configuration(network: Any) -> dict[str, Any]:
    """A network's configuration as JSON holds it: angles, epsilons and sizes are no weights."""
    kept = {key: value for key, value in network.config.to_dict().items() if key not in VOLATILE}
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return found


def fingerprint(network: Any) -> str:
    """CRC-32 over a sample of every weight, so that another checkpoint of one name is noticed.

    Of a network that is cut it gathers each weight, in all processes.

    Raises:
        ValueError: a weight is not in memory.
    """
    crc = 0
    for name, weight in sorted(network.state_dict().items()):
        if weight.is_meta:
            raise ValueError(f"weights must be in memory for their digest, got {name} elsewhere")
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        flat = whole.detach().flatten()
        some = flat[:: max(1, flat.numel() // PROBED)].float().cpu().contiguous()
        crc = zlib.crc32(name.encode() + some.numpy().tobytes(), crc)
    return f"{crc:08x}"


def rules(tokenizer: Any) -> str:
    """SHA-256 of what turns a text into ids, hex: words, merges, and the steps around them.

    Padding and truncation are what the last caller set.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(tokenizer.get_vocab())
    return digest(json.loads(backend.to_str()) | {"padding": None, "truncation": None})


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, hex."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
