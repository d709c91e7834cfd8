"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) in peft's format.

peft is optional. It is imported only when an adapter is used.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm.models.conversions import renamed
from dlm.models.files import absent, cached
from dlm.models.int8 import refuse_quantized
from dlm.models.weights import ADAPTED
from dlm.options import integer, number

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # every weight name in a file starts with this
LOW_RANK = ".lora_"  # follows the layer name in a weight name
LARGEST = 1e6
PLAIN = (
    *("target_parameters", "modules_to_save"),
    *("alora_invocation_tokens", "layer_replication", "megatron_config"),
)
"""Options of peft with which an adapter is more than low-rank matrices added to layers."""
NAME = "default"  # peft's name for the adapter inside a network


def peft_library() -> Any:
    """The module `peft`.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ValueError('adapters need peft: pip install -e ".[train]"') from None
    return peft


def attach(network: Any, source: str, *, merge: bool) -> Any:
    """Add an adapter to a network's layers, in place: W x + (alpha / r) B A x.

    Args:
        network: the loaded network.
        source: a folder or a Hugging Face id. Weight names may be ours or the released ones.
        merge: replace W by W + (alpha / r) B A instead, so that a forward pass costs nothing extra.

    Returns:
        The network with the adapter, in evaluation mode and without gradients.

    Raises:
        ValueError: there is no adapter, it is not LoRA, it belongs to another network, it cannot
            be merged, or weights of the network are 8-bit integers or offloaded.
    """
    library = peft_library()
    refuse_quantized(network, "an adapter")
    if any(weight.is_meta for weight in network.parameters()):
        raise ValueError(
            "an adapter needs every weight on a device of its own: leave out a device_map that "
            "offloads"
        )
    config = read_config(library, source, network)
    weights, moved = read_weights(source, network)
    layers = {name.removeprefix(PREFIX).partition(LOW_RANK)[0] for name in weights}
    check_layers(source, layers, network)
    if moved and (config.rank_pattern or config.alpha_pattern):
        raise ValueError(
            f"the adapter {source!r} has ranks by layer under names of the released code, which "
            "cannot be told apart here: rename its layers"
        )
    # The full layer names come from the weights. The configuration has patterns instead, which can
    # match other layers here than in the code that the adapter was trained with.
    config.target_modules = layers
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.inference_mode = True
    if merge:
        check_untied(source, layers, network)
    wrapped = wrap(network, config)
    expected = library.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    check_weights(source, weights, expected)
    library.set_peft_model_state_dict(wrapped, weights)
    if merge:
        try:
            network = wrapped.merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError) as error:  # the product does not fit the weight
            raise ValueError(f"the adapter {source!r} cannot be merged: {error}") from error
    network.requires_grad_(False)
    return network.eval()


def wrap(network: Any, config: Any) -> Any:
    """Wrap a network in a `PeftModel`, which changes its layers in place.

    Raises:
        ValueError: peft has no adapter for one of the layers.
    """
    with warnings.catch_warnings():
        # peft uses an attribute that transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is dep", FutureWarning)
        return peft_library().PeftModel(network, config, NAME)


def write(wrapped: Any, out: Path, base: str | None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, deterministically.

    Each file is replaced atomically, so that it is never half written.

    Args:
        wrapped: the result of `wrap`.
        out: the folder, created if it does not exist.
        base: the name to record for the model that the adapter belongs to.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = wrapped.get_base_model()
    config = wrapped.peft_config[NAME]
    stated = config.to_dict() | {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "auto_mapping": {
            "base_model_class": type(network).__name__,
            "parent_library": type(network).__module__,
        },
    }
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in stated.items()}
    state = peft_library().get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
    parts = {name: out / f"{name}.part" for name in (CONFIG, WEIGHTS)}
    parts[CONFIG].write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    save_file(tensors, parts[WEIGHTS], metadata={"format": "pt"})
    for name, part in parts.items():
        os.replace(part, out / name)


def read_config(library: Any, source: str, network: Any) -> Any:
    """Read the configuration of a LoRA adapter for this class of networks.

    Raises:
        ValueError: there is none, it is invalid, it has an unsupported option, or the adapter was
            trained for another class.
    """
    path = cached(source, CONFIG)
    if path is None:
        raise ValueError(f"no {CONFIG} in the adapter {source!r}{absent(source)}")
    try:
        stated = json.loads(Path(path).read_text(encoding="utf-8"))
        kind = stated.get("peft_type")
        if kind != "LORA":
            raise ValueError(f"peft_type must be 'LORA', got {kind!r}")
        for option in PLAIN:
            if stated.get(option):
                raise ValueError(f"{option} must be null, got {stated[option]!r}")
        if stated.get("bias", "none") != "none":
            raise ValueError(f"bias must be 'none', got {stated['bias']!r}")
        integer("r", stated.get("r"), least=1)
        number("lora_alpha", stated.get("lora_alpha", 8), least=-LARGEST, most=LARGEST)
        start = stated.get("init_lora_weights", True)
        if start not in (True, False, "gaussian"):  # others also change the base weights
            raise ValueError(f"init_lora_weights must be true, false or gaussian, got {start!r}")
        config = library.LoraConfig.from_peft_type(**stated)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {CONFIG} of the adapter {source!r}: {error}") from error
    mine = type(network).__name__
    trained = (config.auto_mapping or {}).get("base_model_class", mine)
    if trained != mine:
        raise ValueError(f"the adapter {source!r} was trained for a {trained}, this is a {mine}")
    return config


def read_weights(source: str, network: Any) -> tuple[dict[str, Tensor], bool]:
    """The tensors of an adapter under our names, and whether any had to be renamed.

    Raises:
        ValueError: there are none, the file is broken, or a tensor is no low-rank matrix.
    """
    path = cached(source, WEIGHTS)
    if path is None:
        raise ValueError(f"no {WEIGHTS} in the adapter {source!r}: pickles are not read")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read {WEIGHTS} of the adapter {source!r}: {error}") from error
    found = {n: w for n, w in found.items() if not is_copy(n, w, network)}
    strange = [n for n in found if not n.startswith(PREFIX) or LOW_RANK not in n]
    if strange or not found:
        raise ValueError(
            f"the adapter {source!r} must hold tensors {PREFIX}LAYER{LOW_RANK}... alone, "
            f"got {listed(strange) or 'none'}"
        )
    weights = {PREFIX + renamed(n.removeprefix(PREFIX), network): w for n, w in found.items()}
    return weights, weights.keys() != found.keys()


def is_copy(name: str, weight: Tensor, network: Any) -> bool:
    """Whether a tensor equals a weight of the network: peft also saves adapted embeddings."""
    if not name.startswith(PREFIX) or ADAPTED not in name:
        return False
    own = renamed(name.removeprefix(PREFIX).replace(ADAPTED, "."), network)
    known: Tensor | None = network.state_dict().get(own)
    if known is None or known.shape != weight.shape:
        return False
    return torch.equal(known, weight.to(known.device, known.dtype))


def check_untied(source: str, layers: set[str], network: Any) -> None:
    """Reject merging into tied weights, which would also change the layer at the other end.

    Raises:
        ValueError: the adapter has a layer whose weight is tied.
    """
    named = dict(network.named_modules())
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    if ends[1] is not None and ends[0].weight is ends[1].weight:
        tied = sorted(layer for layer in layers if named[layer] in ends)
        if tied:
            raise ValueError(
                f"the adapter {source!r} cannot be merged: the weight of {listed(tied)} is that of "
                "the other end of the network as well. Leave out merge"
            )


def check_layers(source: str, layers: set[str], network: Any) -> None:
    """Reject an adapter for layers that the network does not have.

    Raises:
        ValueError: a layer is missing.
    """
    missing = sorted(layers - {name for name, _ in network.named_modules()})
    if missing:
        raise ValueError(
            f"the adapter {source!r} belongs to another network: this {type(network).__name__} has "
            f"no layer {listed(missing)}"
        )


def check_weights(source: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Reject missing and surplus tensors, wrong shapes, and values that are not finite.

    Args:
        source: where the adapter is, for messages.
        found: the adapter's tensors by name.
        expected: the tensors that the network has for it.

    Raises:
        ValueError: a tensor is wrong.
    """
    names = sorted(found.keys() ^ expected.keys())
    if names:
        raise ValueError(
            f"the adapter {source!r} does not fit its configuration: {listed(names)} "
            "is there only in one of them"
        )
    for name, weight in found.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"the adapter {source!r} belongs to another network: {name} must have the shape "
                f"{list(expected[name].shape)}, got {list(weight.shape)}"
            )
        if not torch.isfinite(weight).all():
            raise ValueError(f"the adapter {source!r} is broken: {name} is not finite")


def listed(names: list[str]) -> str:
    """The first four names, for a message."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
