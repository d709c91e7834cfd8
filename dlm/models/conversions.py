"""Conversion between released weight names and ours.

It serves transformers' loader and `read_directly`. A network class may have `renamings`: pairs
(pattern, replacement), applied in order, that turn released names into ours. Without them, the
names are the same. With `packs_experts`, experts are released one by one and stacked into one
tensor here, see `dlm.models.experts.Experts`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
)

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def register_conversion(network: Any) -> None:
    """Register the weight names of a network class with transformers, for loading and saving."""
    steps: list[WeightConverter | WeightRenaming] = [
        WeightRenaming(source, target) for source, target in renamings(network)
    ]
    if packs_experts(network):
        steps += [
            WeightConverter(
                ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
                "mlp.experts.gate_up_proj",
                operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
            ),
            WeightConverter(
                "mlp.experts.*.down_proj.weight",
                "mlp.experts.down_proj",
                operations=[MergeModulelist(dim=0)],
            ),
        ]
    if steps:
        kind = network.config_class.model_type
        register_checkpoint_conversion_mapping(kind, steps, overwrite=True)


def renamings(network: Any) -> tuple[tuple[str, str], ...]:
    """The pairs (pattern, replacement) of a network or its class."""
    return getattr(network, "renamings", ())


def packs_experts(network: Any) -> bool:
    """Whether a network or its class stacks its experts into one tensor."""
    return getattr(network, "packs_experts", False)


def renamed(name: str, network: Any) -> str:
    """Our name for a released weight."""
    for pattern, replacement in renamings(network):
        name = re.sub(pattern, replacement, name)
    return name


def received(state: Any, network: Any, *, strict: bool, assign: bool) -> Any:
    """A state dict under our names, for `torch.nn.Module.load_state_dict`.

    `save_pretrained` writes released names. A state dict that already has our names is returned
    unchanged.

    Args:
        state: the state dict.
        network: the network that it is loaded into.
        strict: as in `load_state_dict`.
        assign: as in `load_state_dict`.

    Raises:
        RuntimeError: an expert has another shape than in the network.
    """
    mine: dict[str, Tensor] = network.state_dict()
    if not isinstance(state, Mapping) or state.keys() <= mine.keys():
        return state
    found, packed = dict[str, Any](), dict[str, dict[str, Tensor]]()
    for name, weight in state.items():
        target = None if name in mine else place(name, network, mine)
        if target is None:
            found[name] = weight
        elif packs_experts(network) and EXPERT.fullmatch(renamed(name, network)):
            packed.setdefault(target[0], {})[name] = weight
        else:
            found[target[0]] = weight
    for ours, parts in packed.items():
        found |= together(ours, parts, network, mine[ours], some=not (strict or assign))
    return found


def together(
    ours: str, parts: Mapping[str, Tensor], network: Any, held: Tensor, *, some: bool
) -> Mapping[str, Tensor]:
    """Stack expert weights into one tensor under our name; unchanged if some are missing.

    Args:
        ours: our name.
        parts: released name -> weight.
        network: the network that they belong to.
        held: the network's tensor.
        some: whether to take missing experts from the network's own tensor.

    Raises:
        RuntimeError: an expert has another shape than in the network.
    """
    first = next(iter(parts.values()))
    if len(parts) == len(held) * (1 if ours.endswith("down_proj") else 2):
        whole = torch.empty(held.shape, dtype=first.dtype, device=first.device)
    elif some and not held.is_meta:
        whole = held.detach().clone()
    else:
        return parts  # torch reports what is missing
    for name, weight in parts.items():
        place_found = place(name, network, {ours: whole})
        assert place_found is not None
        if place_found[1].shape != weight.shape:
            raise RuntimeError(
                f"size mismatch for {name}: {list(weight.shape)} in the state, "
                f"{list(place_found[1].shape)} in the network"
            )
        place_found[1].copy_(weight)
    return {ours: whole}


def place(name: str, network: Any, weights: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    """Our name for a released weight, and the part of our tensor that it fills.

    None if the network has no place for the weight.
    """
    ours = renamed(name, network)
    expert = EXPERT.fullmatch(ours) if packs_experts(network) else None
    if expert is None:
        return (ours, weights[ours]) if ours in weights else None
    stem, number, part = expert.groups()
    ours = f"{stem}.down_proj" if part == "down" else f"{stem}.gate_up_proj"
    if ours not in weights or int(number) >= len(weights[ours]):
        return None
    whole = weights[ours][int(number)]
    if part == "down":
        return ours, whole
    return ours, whole.chunk(2, 0)[0 if part == "gate" else 1]
