"""Loading networks with their weights: through transformers, or directly from safetensors."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dlm.models.conversions import place
from dlm.models.families import ENCODER
from dlm.models.family import Family
from dlm.models.files import cached, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NOT_READ = re.compile(r"rotary_emb\.inv_freq$")  # in old checkpoints; the configuration decides
ADAPTED = ".base_layer."  # in the weight names of layers that peft has adapted
ELSEWHERE = ("device_map", "distributed_config")  # options that say where weights go
PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8")
"""Dtypes of safetensors with one number per element; others pack several smaller ones."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_network(
    source: str,
    config: Any,
    family: Family,
    device: torch.device,
    where: Mapping[str, Any],
    **options: Any,
) -> Any:
    """Build a network and load its weights through transformers.

    Args:
        source: a folder or a Hugging Face id.
        config: of the network.
        family: of the network.
        device: where to put it; ignored with a `device_map` or a `distributed_config`.
        where: as `dlm.models.files.cached` takes it.
        options: `dtype`, `attn_implementation`, `device_map`, `quantization_config` and
            `distributed_config`, as `from_pretrained` takes them.

    Raises:
        ValueError: weights are missing, surplus, of the wrong shape, or not safetensors.
    """
    from transformers import AutoModelForMaskedLM

    refuse_pickles(source)
    refuse_adapter(source, **where)
    file_names(source, **where)  # to report a broken index before transformers does, unclearly
    kind = AutoModelForMaskedLM if family is ENCODER else family.network_class()
    if not any(options[name] for name in ELSEWHERE) and device.type != "cpu":
        options["device_map"] = {"": device}  # so that host memory never holds all weights
    try:
        network, report = kind.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
            **options,
        )
    except (OSError, SafetensorError, RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError):  # its message names no tensor of the wrong shape
            refuse(source, {"mismatched": mismatched(source, config, family, where)})
        raise ValueError(f"cannot load the weights of {source!r}: {error}") from error
    if getattr(network, "hf_quantizer", None) is not None:  # early versions then check no shapes
        refuse(source, {"mismatched": mismatched(source, config, family, where)})
    if family is ENCODER:
        from dlm.models.encoder import OTHER_HEADS, Encoder

        unexpected = report["unexpected_keys"]
        report["unexpected_keys"] = [
            key for key in unexpected if not any(re.search(head, key) for head in OTHER_HEADS)
        ]
        network = Encoder(network)
    refuse(source, {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys})
    return finished(source, network)


def read_directly(
    source: str,
    config: Any,
    family: Family,
    device: torch.device,
    dtype: str | torch.dtype,
    attention: str,
    where: Mapping[str, Any],
) -> Any:
    """Build a network and copy its weights from safetensors, one tensor at a time.

    The result equals that of `read_network` bit for bit, without transformers' loader.

    Args:
        source: a folder or a Hugging Face id.
        config: of the network.
        family: of the network.
        device: where to put it.
        dtype: of the weights; "auto" takes the configuration's, or that of the first weight.
        attention: the attention backend.
        where: as `dlm.models.files.cached` takes it.

    Raises:
        ValueError: as in `read_network`.
    """
    refuse_pickles(source)
    refuse_adapter(source, **where)
    files = weight_files(source, **where)
    if not isinstance(dtype, torch.dtype):
        dtype = config.dtype or first_dtype(source, files)
    with torch.device("meta"):
        network = family.network_class()(config)
    network.set_attn_implementation(attention)
    cast(network, dtype)
    network.to_empty(device=device)  # unties weights: files may contain both of a tied pair
    for module in network.modules():
        if next(module.buffers(recurse=False), None) is not None:
            network._init_weights(module)  # fills what checkpoints lack: rotary frequencies
    try:
        refuse(source, fill(network, tensors(files)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"cannot load the weights of {source!r}: {error}") from error
    return finished(source, network)


def refuse_pickles(source: str) -> None:
    """Reject a folder with pickled weights only, because unpickling can run code.

    Raises:
        ValueError: the folder has pickles and no safetensors.
    """
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"cannot load the weights of {source!r}: {pickles[0]} is a pickle, which could run "
            "code of its own. Convert it to safetensors first"
        )


def refuse_adapter(source: str, **where: Any) -> None:
    """Reject an adapter beside the weights, which transformers would add silently.

    Raises:
        ValueError: there is one.
    """
    if cached(source, "adapter_config.json", **where) is not None:
        raise ValueError(
            f"{source!r} holds an adapter beside the weights: keep it in a folder of its own and "
            "pass adapter"
        )


def refuse_adapted(network: Any) -> None:
    """Reject saving a network with an adapter in its layers, whose weight names cannot be loaded.

    Raises:
        ValueError: a layer holds an adapter.
    """
    if any(ADAPTED in name for name, _ in network.named_parameters()):
        raise ValueError(
            "save_pretrained must get a network without an adapter in its layers: load it with "
            "merge=True, call merge_and_unload of its PeftModel, or save the adapter alone by "
            "save_pretrained of its PeftModel"
        )


def mismatched(source: str, config: Any, family: Family, where: Mapping[str, Any]) -> list[str]:
    """A message for each weight whose shape in the files differs from the network's."""
    from transformers import AutoModelForMaskedLM

    made = AutoModelForMaskedLM.from_config if family is ENCODER else family.network_class()
    with torch.device("meta"):
        network = made(config)
    weights = network.state_dict()
    told = []
    for path in weight_files(source, **where):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                found, held = place(name, network, weights), file.get_slice(name)
                if found is None or held.get_dtype() not in PLAIN:
                    continue
                if [*found[1].shape] != held.get_shape():
                    told.append(misfit(name, found[1].shape, held.get_shape()))
    return told


def misfit(name: str, wanted: Sequence[int], found: Sequence[int]) -> str:
    """The message for a weight of the wrong shape."""
    return f"{name} must be {[*wanted]}, got {[*found]} in the files"


def refuse(source: str, wrong: dict[str, list[str]]) -> None:
    """Reject weights that do not fit.

    Args:
        source: the checkpoint, for the message.
        wrong: what is wrong -> weights; the message lists the first four of each.

    Raises:
        ValueError: there are any.
    """
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(keys[:4])}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"the weights of {source!r} do not fit its configuration: {listed}")


def finished(source: str, network: Any) -> Any:
    """The loaded network, checked, in evaluation mode and without gradients."""
    check_rotary(source, network)
    network.requires_grad_(False)
    return network.eval()


def check_rotary(source: str, network: nn.Module) -> None:
    """Reject rotary frequencies that loading corrupted: buffers that files need not contain.

    Raises:
        ValueError: they do not start at 1, do not decrease, or differ from the configuration's.
    """
    from dlm.models.dit import RotaryEmbedding as DitRotaryEmbedding
    from dlm.models.rotary import RotaryEmbedding

    for name, module in network.named_modules():
        found = getattr(module, "inv_freq", None)
        if not isinstance(found, Tensor):
            continue
        found = found.float().cpu()
        wrong = found[0] != 1 or not bool((found.diff() < 0).all())
        if isinstance(module, RotaryEmbedding):
            wrong = wrong or not torch.equal(found, module.frequencies(module.config))
        elif isinstance(module, DitRotaryEmbedding):  # read from a file, computed elsewhere
            wrong = wrong or not torch.allclose(found, module.frequencies(module.width), rtol=1e-5)
        if wrong:
            raise ValueError(
                f"{name}.inv_freq of {source!r} must fall from 1 as its configuration says, "
                f"got {found[:3].tolist()} ..."
            )


def file_names(source: str, **where: Any) -> list[str]:
    """Names of the weight files: those in the index, unless there is a single file or no index.

    Raises:
        ValueError: the index is broken.
    """
    single = cached(source, SINGLE, **where) is not None
    index = None if single else read_json(source, INDEX, **where)
    if index is None:
        return [SINGLE]
    places = index.get("weight_map")
    named = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not places or not named or not isinstance(index.get("metadata"), dict):
        raise ValueError(
            f"cannot read {INDEX} of {source!r}: it must hold metadata, and a weight_map that "
            f"names the file of every weight, got {sorted(index)}"
        )
    return sorted(set(places.values()))


def weight_files(source: str, **where: Any) -> list[Path]:
    """Paths of a checkpoint's safetensors files.

    Raises:
        ValueError: there is none, the index is broken, or a file in the index is missing.
    """
    paths = {name: cached(source, name, **where) for name in file_names(source, **where)}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise ValueError(f"cannot load the weights of {source!r}: no file {missing[0]}")
    return [Path(path) for path in paths.values() if path is not None]


def tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the files, read one at a time."""
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                yield name, file.get_tensor(name)


def first_dtype(source: str, files: list[Path]) -> torch.dtype:
    """The dtype of the first floating tensor.

    Raises:
        ValueError: there is none.
    """
    for _, tensor in tensors(files):
        if tensor.is_floating_point():
            return tensor.dtype
    raise ValueError(f"cannot load the weights of {source!r}: none is a floating tensor")


def cast(network: Any, dtype: torch.dtype) -> None:
    """Cast a network, except for weights that stay in float32 in half precision."""
    half = dtype in (torch.float16, torch.bfloat16)
    wide = set(network._keep_in_fp32_modules_strict or ()) if half else set()
    state = network.state_dict(keep_vars=True)  # without buffers that are not saved
    for name, tensor in state.items():
        if tensor.is_floating_point() and not wide.intersection(name.split(".")):
            tensor.data = tensor.data.to(dtype)


@torch.no_grad()
def fill(network: Any, released: Iterator[tuple[str, Tensor]]) -> dict[str, list[str]]:
    """Copy weights into a network.

    Two weights that the configuration ties are tied, unless both are in the files and differ.

    Args:
        network: the network, with memory for its weights.
        released: names, as released, and tensors.

    Returns:
        The weights that do not fit: "unexpected", "mismatched" or "missing" -> names or messages.
    """
    weights = network.state_dict(keep_vars=True)
    filled: dict[str, set[tuple[int, int]]] = {name: set() for name in weights}
    misshapen: dict[str, set[tuple[int, int]]] = {name: set() for name in weights}
    wrong: dict[str, list[str]] = {"unexpected": [], "mismatched": []}
    for name, tensor in released:
        found = place(name, network, weights)
        if found is None:
            if not NOT_READ.search(name):
                wrong["unexpected"].append(name)
            continue
        # Parts are identified by their place: filling one twice must not count as filling two.
        part = int(found[1].storage_offset()), found[1].numel()
        if found[1].shape != tensor.shape:
            wrong["mismatched"].append(misfit(name, found[1].shape, tensor.shape))
            misshapen[found[0]].add(part)
        else:
            found[1].copy_(tensor)
            filled[found[0]].add(part)
    missing = {name for name, parts in filled.items() if not covers(parts, weights[name])}
    network.tie_weights(missing_keys=missing, recompute_mapping=False)  # as transformers' loader
    optional = network._keys_to_ignore_on_load_missing or ()
    wrong["missing"] = [
        name
        for name in weights
        if name in missing
        and not covers(filled[name] | misshapen[name], weights[name])  # mismatches are listed above
        and not any(re.search(pattern, name) for pattern in optional)
    ]
    return {kind: names for kind, names in wrong.items() if names}


def covers(parts: set[tuple[int, int]], weight: Tensor) -> bool:
    """Whether the distinct parts (offset, elements) of a weight add up to all of it."""
    return sum(elements for _, elements in parts) >= weight.numel()
