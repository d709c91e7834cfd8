"""Checks of where weights go: to one device, over several, or split over processes."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from dlm.models.configs import DecoderConfig

HEADS: Final = ("num_attention_heads", "num_key_value_heads")
WIDTHS: Final = ("intermediate_size", "moe_intermediate_size")
"""Sizes of the configuration that tensor parallelism divides, together with `HEADS`."""


def check_device(device: str | torch.device | None) -> torch.device:
    """The torch device; the CPU for None.

    Raises:
        ValueError: it is no device, or this machine does not have it.
    """
    try:
        target = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device, got {device!r}") from error
    if target.type == "meta":
        raise ValueError(f"device must be one that holds weights, got {device!r}")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    try:
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:  # differs between device types
        raise ValueError(f"device must be one that this machine has, got {device!r}") from error
    return target


def check_placement(
    device: object, direct: bool, maps: Mapping[str, Any], quantization_config: Any
) -> None:
    """Reject invalid options about placement, and combinations that exclude each other.

    Args:
        device: the option `device` of `dlm.load`, if given.
        direct: whether weights are read without transformers' loader.
        maps: `device_map` and `distributed_config`; at most one of them may be given.
        quantization_config: as `dlm.load` takes it.

    Raises:
        ValueError: an option is invalid, or cannot be combined with another one.
    """
    device_map, parts = maps["device_map"], maps["distributed_config"]
    if device is not None and device_map is not None:
        raise ValueError(f"give device or device_map, not both: {device!r} and {device_map!r}")
    if direct and (device_map is not None or quantization_config is not None):
        raise ValueError(
            "direct reads weights as they are onto one device: it excludes device_map and "
            f"quantization_config, got {device_map!r} and {quantization_config!r}"
        )
    if parts is not None:
        check_distribution(parts)
        if device is not None or direct or device_map is not None:
            raise ValueError(
                "distributed_config cuts the network over processes, to a device each: it excludes "
                f"device, direct and device_map, got {device!r}, {direct!r} and {device_map!r}"
            )
    if device_map is not None and not is_map(device_map):
        raise ValueError(
            'device_map must be a strategy such as "auto", a device, or a mapping of modules to '
            f"devices, got {device_map!r}"
        )
    if names_cuda(device_map) and not torch.cuda.is_available():
        raise ValueError(
            f"device_map {device_map!r} was asked for, but torch sees no CUDA device here"
        )
    if quantization_config is not None:
        from transformers.utils.quantization_config import QuantizationConfigMixin

        if not isinstance(quantization_config, QuantizationConfigMixin):
            raise ValueError(
                "quantization_config must be a W8A8Config or one of transformers' configurations "
                f"such as BitsAndBytesConfig, got {quantization_config!r}"
            )


def check_distribution(distributed_config: Any) -> None:
    """Reject a `distributed_config` without tensor parallelism.

    Raises:
        ValueError: it is no `DistributedConfig` of transformers, or has no `tp_size`.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    if not isinstance(distributed_config, DistributedConfig) or not distributed_config.tp_size:
        raise ValueError(
            "distributed_config must be transformers' DistributedConfig with a tp_size, got "
            f"{distributed_config!r}"
        )


def is_map(device_map: Any) -> bool:
    """Whether accelerate can read a device map: one place for all, or places by module name."""

    def place(value: Any) -> bool:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return number or (isinstance(value, str) and bool(value)) or isinstance(value, torch.device)

    if not isinstance(device_map, Mapping):
        return place(device_map)
    named = all(isinstance(name, str) and place(value) for name, value in device_map.items())
    return named and bool(device_map)


def names_cuda(device_map: Any) -> bool:
    """Whether a device map names a CUDA device."""
    places = device_map.values() if isinstance(device_map, Mapping) else (device_map,)
    return any(str(place).partition(":")[0] == "cuda" for place in places)


def check_parts(config: Any, size: int) -> None:
    """Reject a network that cannot be split over this many processes.

    Raises:
        ValueError: weights are quantised, the family has no tensor parallel plan, or the number of
            processes does not divide a size.
    """
    if size == 1:
        return
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"tensor_parallel_size must be 1 for quantized weights, got {size}")
    plan = config.base_model_tp_plan if isinstance(config, DecoderConfig) else None
    if not plan:
        raise ValueError(
            f"tensor_parallel_size must be 1 for a {config.model_type}, which nobody knows how to "
            f"cut, got {size}"
        )
    heads = HEADS if any(".q_proj" in name for name in plan) else ()
    for name in (*heads, *WIDTHS):
        found = getattr(config, name, None)
        if isinstance(found, int) and found % size:
            raise ValueError(
                f"tensor_parallel_size must divide {config.name_in_file(name)}, got {size} and "
                f"{found}"
            )
