"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) in the format of peft.

peft is optional and is imported where an adapter is asked for.
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
PREFIX = "base_model.model."  # of every weight's name in a file
LOW_RANK = ".lora_"  # what follows the name of a layer
LARGEST = 1e6
PLAIN = (
    *("target_parameters", "modules_to_save"),
    *("alora_invocation_tokens", "layer_replication", "megatron_config"),
)
"""Options of peft that make another thing of an adapter than a matrix beside those of layers."""
NAME = "default"  # of the adapter inside a network


def peft_library() -> Any:
    """Peft.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ValueError('adapters need peft: pip install -e ".[train]"') from None
    return peft


def attach(network: Any, source: str, *, merge: bool) -> Any:
    """The network with an adapter in its layers, W x + (alpha / r) B A x, which it changes.

    Args:
        network: as loaded.
        source: a folder or a Hugging Face id. Names may be ours or the released ones.
        merge: put W + (alpha / r) B A in the place of W instead: no extra work in a forward.

    Raises:
        ValueError: no adapter, another kind than LoRA, or one of another network; weights that are
            8-bit integers.
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
    # Layers by their full names, as the weights have them: what a configuration says instead are
    # patterns, which fit other layers here than in the code the adapter was trained with.
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
        except (RuntimeError, ValueError) as error:  # what it adds has no place in the layer
            raise ValueError(f"the adapter {source!r} cannot be merged: {error}") from error
    network.requires_grad_(False)
    return network.eval()


def wrap(network: Any, config: Any) -> Any:
    """A `PeftModel` around a network whose layers it changes in place.

    Raises:
        ValueError: layers that peft has no adapter for.
    """
    with warnings.catch_warnings():
        # peft asks transformers by a name that transformers has moved on from.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is dep", FutureWarning)
        return peft_library().PeftModel(network, config, NAME)


def write(wrapped: Any, out: Path, base: str | None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, the same bytes every time.

    Each file takes its place whole, in one atomic step.

    Args:
        wrapped: what `wrap` gave.
        out: folder, made if it is not there.
        base: name to be written for the model the adapter belongs to.
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
    """The configuration of an adapter, if it is a LoRA for this class of networks."""
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
        if start not in (True, False, "gaussian"):  # the others changed the base's weights too
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
    """The tensors of an adapter under our names, and whether any had another name.

    Raises:
        ValueError: there are none, or some of another kind.
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
    """Whether a tensor is one of the network's: peft writes embeddings whose layers it adapts."""
    if not name.startswith(PREFIX) or ADAPTED not in name:
        return False
    own = renamed(name.removeprefix(PREFIX).replace(ADAPTED, "."), network)
    known: Tensor | None = network.state_dict().get(own)
    if known is None or known.shape != weight.shape:
        return False
    return torch.equal(known, weight.to(known.device, known.dtype))


def check_untied(source: str, layers: set[str], network: Any) -> None:
    """Refuse to merge into a weight that another layer has, too, which would change that one."""
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
    """Refuse an adapter for layers that the network has not got."""
    missing = sorted(layers - {name for name, _ in network.named_modules()})
    if missing:
        raise ValueError(
            f"the adapter {source!r} belongs to another network: this {type(network).__name__} has "
            f"no layer {listed(missing)}"
        )


def check_weights(source: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, too many, or of another shape than the network's."""
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
    """The first few names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
