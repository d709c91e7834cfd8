"""Model loading for commands, with little noise."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from dlm.cli.results import note
from dlm.models.catalog import BUILT_IN_NAME
from dlm.options import known

if TYPE_CHECKING:
    from dlm.models.model import Model


WIDTHS: Final = ("w8a8", "8bit", "4bit")  # of quantized weights; bitsandbytes for those in bits


def model_name(name: str | None, adapter: str | None, revision: str | None = None) -> str:
    """The name of the model in results."""
    base = BUILT_IN_NAME if name is None else name
    base = base if revision is None else f"{base}@{revision}"
    return base if adapter is None else f"{base} + {adapter}"


def load_model(
    name: str | None,
    device: str | None,
    dtype: str,
    *,
    adapter: str | None = None,
    quantize: str | None = None,
    **facts: Any,
) -> "Model":
    """Load the model, with transformers' progress bar if loading may take long.

    The built-in model loads quickly, so it shows no bar; nor is one shown if stderr is not a
    terminal. An adapter is merged into the weights, so that a forward pass costs the same as
    without it, unless bitsandbytes has quantized the weights. `facts` are further options of
    `dlm.load`: revision, family, block_size, mask_id, stop_ids, device_map, tensor_parallel_size
    and attn_implementation.
    """
    if quantize is not None:
        check_quantize(quantize, facts.get("tensor_parallel_size") or 1)
    if adapter is not None:
        facts |= {"adapter": adapter, "merge": quantize in (None, "w8a8")}
    console = Console(stderr=True)
    with console.status("loading"):
        from dlm.models.loading import load, silence
    if quantize is not None:
        facts["quantization_config"] = quantization(quantize)
        if device == "cpu" and quantize != "w8a8" and facts.get("device_map") is None:
            # transformers puts bitsandbytes weights on a GPU unless a device map says otherwise.
            device, facts["device_map"] = None, {"": "cpu"}
    elif name is not None and device is None and facts.get("device_map") is None:
        tell_of_gpu()
    if name is not None:
        return load(name, device=device, dtype=dtype, **facts)
    with silence():
        return load(name, device=device, dtype=dtype, **facts)


def devices_of(device: str | None, copies: int, facts: Mapping[str, Any]) -> list[str | None]:
    """The devices of several copies of a model: one GPU for each copy, or the CPU for all.

    Args:
        device: the device as the user named it.
        copies: number of copies.
        facts: other options of `load_model`.

    Raises:
        ValueError: one GPU is named for several copies, there are too few GPUs, or an option
            spreads a single copy over several devices.
    """
    if copies == 1:
        return [device]
    for name, one in (("device_map", None), ("tensor_parallel_size", 1)):
        if facts.get(name, one) != one:
            raise ValueError(
                f"--{name.replace('_', '-')} spreads one copy, and --data-parallel-size {copies} "
                "gives each of several a GPU of its own: give one of the two"
            )
    if device is None or device == "cpu":
        return [device] * copies
    if device != "cuda":
        raise ValueError(
            f"--data-parallel-size {copies} takes GPUs 0 to {copies - 1}: give --device cuda, got "
            f"{device!r}; CUDA_VISIBLE_DEVICES says which ones there are"
        )
    import torch

    if torch.cuda.device_count() < copies:
        raise ValueError(
            f"--data-parallel-size must be at most the number of GPUs, got {copies} where there "
            f"are {torch.cuda.device_count()}"
        )
    return [f"cuda:{number}" for number in range(copies)]


def check_quantize(width: str, parts: int = 1) -> None:
    """Refuse weights that cannot be quantized, before anything is loaded.

    Raises:
        ValueError: the format is unknown, the weights are split into several `parts`, or
            bitsandbytes is not installed.
    """
    known("quantize", width, WIDTHS)
    if parts != 1:
        raise ValueError(f"quantize {width!r} does not go with tensor_parallel_size {parts}")
    if width != "w8a8" and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize {width!r} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )


def quantization(width: str) -> Any:
    """The transformers configuration of a format."""
    import torch
    from transformers import BitsAndBytesConfig

    from dlm.huggingface.quantization import W8A8Config

    if width == "w8a8":
        return W8A8Config()
    if width == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def tell_of_gpu() -> None:
    """Note that this machine has a GPU which is not used."""
    import torch

    if torch.cuda.is_available():
        note("decoding on the CPU: --device cuda takes the GPU of this machine")
