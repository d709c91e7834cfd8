"""Checks of adapters that peft or transformers put into a network."""

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

PICKLED = "adapter_model.bin"  # transformers reads it if there is nothing else
WHERE = (
    *("cache_dir", "force_download", "local_files_only", "proxies"),
    *("revision", "subfolder", "token"),
)
"""Options of transformers that locate files, as `cached` takes them."""
UNREAD = ".lora_magnitude_vector"  # of DoRA; transformers does not find these names of files here
OF_EXPERT = re.compile(r"(.*\.mlp\.experts)\.\d+\.")


def refuse_misplaced(network: Any, told: Mapping[str, Any]) -> None:
    """Refuse an adapter that the network has no place for in full, before the network changes.

    peft finds layers by the configuration; transformers finds weights by name, and skips those for
    which peft adapted no layer. This check compares names alone: those of the weights, and those of
    the layers of a copy on the meta device that peft adapts instead of the network.

    Args:
        network: a network of transformers.
        told: the arguments of its `load_adapter`, by name.

    Raises:
        ValueError: some weights have no place, or the network has none of the layers that the
            configuration names.
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
        return  # transformers reports this
    if name in getattr(network, "peft_config", {}):  # the weights replace those of that adapter
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
    """Refuse an adapter if the network has no adapted layer for some of its weights.

    Raises:
        ValueError: there are such weights.
    """
    if left:
        raise ValueError(
            f"load_adapter must find a layer for all of the adapter {str(source)!r}, got none for "
            f"{listed(sorted(left))}: dlm.load(adapter=) takes names of the released code as well"
        )


def names_in(source: str, safe: bool, where: Mapping[str, Any]) -> list[str] | None:
    """Names of the weights in the file that transformers will read; None if there is no file.

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
    """The configuration of an adapter of any kind; None if there is none."""
    path = cached(source, CONFIG, **where)
    return path and peft_library().PeftConfig.from_pretrained(str(Path(path).parent))


def expected_names(network: Any, config: Any) -> set[str]:
    """Names that weights may have once a network is adapted; empty if adapting needs its weights.

    Raises:
        ValueError: the network has none of the layers that the configuration names.
    """
    config = deepcopy(config)  # peft writes into it
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some kinds begin by decomposing weights
    with torch.device("meta"):
        twin = type(network)(deepcopy(network.config))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft repeats its warnings when it adapts the network
            peft_library().inject_adapter_in_model(config, twin, NAME, low_cpu_mem_usage=True)
    except RuntimeError:  # this kind of adapter computes with weights, which the copy lacks
        return set()
    return names_of(twin, NAME)


def names_of(network: Any, name: str) -> set[str]:
    """Names that weights may have for the adapter that the network has under this name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = peft_library().get_peft_model_state_dict(
            network, adapter_name=name, save_embedding_layers=False
        )
    found = {each for each in state if not each.endswith(UNREAD)}
    return found | {*network.state_dict()}  # peft saves embeddings along with their adapters


def left_over(
    network: Any, weights: Iterable[str], expected: set[str], steps: Iterable[WeightRenaming]
) -> list[str]:
    """Names of weights, converted to dlm's, that are not among those expected."""
    base = f"{network.base_model_prefix}."
    left = []
    for name in weights:
        found = name.removeprefix(PREFIX)
        for step in steps:  # from a user's `key_mapping`
            found = step.rename_source_key(found)[0]
        found = renamed(found, network)
        # As in transformers, names match with and without the prefix of the base model.
        if not expected.isdisjoint((found, base + found, found.removeprefix(base))):
            continue
        expert = OF_EXPERT.match(found) if packs_experts(network) else None
        if expert and any(each.startswith(f"{expert[1]}.base_layer.") for each in expected):
            continue  # transformers merges the experts
        left.append(found)
    return left


def refuse_learned_prompts(network: Any) -> None:
    """Refuse a network whose inputs peft prepares, because `generate` would not ask for them.

    Raises:
        ValueError: its `prepare_inputs_for_generation` is another object's.
    """
    found = getattr(network.prepare_inputs_for_generation, "__self__", None)
    if found is not network:
        raise ValueError(
            "prepare_inputs_for_generation must be the network's own: prompts that peft learned "
            f"have no place on a canvas of token ids, got that of a {type(found).__name__}"
        )
