"""What is refused of adapters that peft or transformers put into a network."""

import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.core_model_loading import WeightRenaming

from dlm.models.adapter import CONFIG, NAME, PREFIX, WEIGHTS, listed, peft_library
from dlm.models.conversions import packs_experts, renamed
from dlm.models.files import cached

PICKLED = "adapter_model.bin"  # which transformers reads where nothing else is there
WHERE = (
    *("cache_dir", "force_download", "local_files_only", "proxies"),
    *("revision", "subfolder", "token"),
)
"""Options of transformers that say where files are, as `cached` takes them."""
UNREAD = ".lora_magnitude_vector"  # of DoRA, whose names in files transformers does not find here
OF_EXPERT = re.compile(r"(.*\.mlp\.experts)\.\d+\.")


def refuse_misplaced(network: Any, told: Mapping[str, Any]) -> None:
    """Refuse an adapter of which the network has no place for some, before it is changed.

    Peft finds layers by the configuration, transformers by the names of weights, and passes over
    those for which peft found none. Here both are told by names alone: of the weights, and of the
    layers of a network without memory that peft adapts in its place.

    Args:
        network: of transformers.
        told: arguments of its `load_adapter`, by name.

    Raises:
        ValueError: it has no place for some, or none of the layers that the configuration names.
    """
    settings, others = told.get("load_config"), told.get("kwargs") or {}
    known = (getattr(settings, "__dict__", {}), others)
    stated = {name: value for each in known for name, value in each.items()}
    source = told.get("peft_model_id") or stated.get("pretrained_model_name_or_path")
    places = (stated.get("download_kwargs"), others, told.get("adapter_kwargs"), told)
    where = {k: each[k] for each in places if each for k in WHERE if each.get(k)}
    name = told.get("adapter_name") or NAME
    weights = told.get("adapter_state_dict")
    if weights is None and source is not None:
        weights = names_in(os.fspath(source), stated.get("use_safetensors") is not False, where)
    if weights is None:
        return  # which transformers says
    if name in getattr(network, "peft_config", {}):  # its weights take the place of that one's
        expected = names_of(network, name)
    else:
        config = told.get("peft_config")
        if config is None and source is not None:
            config = read_config(os.fspath(source), where)
        if config is None:
            return
        expected = expected_names(network, config)
    if expected:
        steps = [s for s in stated.get("weight_mapping") or () if isinstance(s, WeightRenaming)]
        refuse_partial(source, left_over(network, weights, expected, steps))


def refuse_partial(source: object, left: Collection[str]) -> None:
    """Refuse an adapter for some of whose weights the network has no adapted layer.

    Raises:
        ValueError: there are such.
    """
    if left:
        raise ValueError(
            f"load_adapter must find a layer for all of the adapter {str(source)!r}, got none for "
            f"{listed(sorted(left))}: dlm.load(adapter=) takes names of the released code as well"
        )


def names_in(source: str, safe: bool, where: Mapping[str, Any]) -> list[str] | None:
    """Names of the weights in the file that transformers will read; None where there is none.

    Raises:
        ValueError: the file is corrupt.
    """
    for name in (WEIGHTS, PICKLED) if safe else (PICKLED, WEIGHTS):
        path = cached(source, name, **where)
        if path is not None and name == WEIGHTS:
            try:
                with safe_open(path, "pt") as file:
                    return [*file.keys()]
            except SafetensorError as error:
                raise ValueError(f"cannot read {name} of the adapter {source!r}: {error}") from None
        if path is not None:
            return [*torch.load(path, map_location="meta", weights_only=True)]
    return None


def read_config(source: str, where: Mapping[str, Any]) -> Any:
    """The configuration of an adapter of any kind; None where there is none."""
    path = cached(source, CONFIG, **where)
    return path and peft_library().PeftConfig.from_pretrained(str(Path(path).parent))


def expected_names(network: Any, config: Any) -> set[str]:
    """Names that weights may have in a network once it is adapted; none if that takes its weights.

    Raises:
        ValueError: it has none of the layers that the configuration names.
    """
    config = deepcopy(config)  # peft writes into it
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some begin with a decomposition of weights
    with torch.device("meta"):
        twin = type(network)(deepcopy(network.config))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft says it once more when it adapts the network
            peft_library().inject_adapter_in_model(config, twin, NAME, low_cpu_mem_usage=True)
    except RuntimeError:  # of a kind of adapter that computes with the weights, which are not there
        return set()
    return names_of(twin, NAME)


def names_of(network: Any, name: str) -> set[str]:
    """Names that weights may have in a network for an adapter, which that name has there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = peft_library().get_peft_model_state_dict(
            network, adapter_name=name, save_embedding_layers=False
        )
    found = {each for each in state if not each.endswith(UNREAD)}
    return found | {*network.state_dict()}  # peft writes embeddings beside their adapters


def left_over(
    network: Any, weights: Iterable[str], expected: set[str], steps: Iterable[WeightRenaming]
) -> list[str]:
    """Names of weights that are none of those expected, under our names."""
    base = f"{network.base_model_prefix}."
    left = []
    for name in weights:
        found = name.removeprefix(PREFIX)
        for step in steps:  # of a user's `key_mapping`
            found = step.rename_source_key(found)[0]
        found = renamed(found, network)
        # As transformers: with and without a head are one network.
        if not expected.isdisjoint((found, base + found, found.removeprefix(base))):
            continue
        expert = OF_EXPERT.match(found) if packs_experts(network) else None
        if expert and any(each.startswith(f"{expert[1]}.base_layer.") for each in expected):
            continue  # transformers joins them
        left.append(found)
    return left


def refuse_learned_prompts(network: Any) -> None:
    """Refuse a network whose inputs peft would prepare: nothing here asks for that.

    Raises:
        ValueError: its `prepare_inputs_for_generation` is another's.
    """
    found = getattr(network.prepare_inputs_for_generation, "__self__", None)
    if found is not network:
        raise ValueError(
            "prepare_inputs_for_generation must be the network's own: prompts that peft learned "
            f"have no place on a canvas of token ids, got that of a {type(found).__name__}"
        )
