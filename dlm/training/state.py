"""What a run writes down of itself, so that it goes on with what it began with alone."""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dlm.models.identity import configuration, rules
from dlm.training.batches import Batches

KINDS = {"recipe": dict, "step": int, "network": dict, "optimizers": list}
"""What every checkpoint holds; `network` are the weights."""

FACTS = {"config": dict, "given": dict}
"""What checkpoints hold of the network and the data, since they are compared."""


def facts(recipe: dict[str, Any], network: Any, batches: Batches) -> dict[str, dict[str, Any]]:
    """What decides the result of a run, in values that `torch.load` reads without pickle."""
    own = ((example.prompt, example.response) for example in batches.examples)
    given = {
        "examples": digest(own),
        "held_out": digest(sorted(batches.held_out)),
        "tokenizer": digest(words(batches.tokenizer)),
    }
    return {"recipe": recipe, "config": configuration(network), "given": given}


def words(tokenizer: Any) -> list[Any]:
    """What decides the ids that a tokenizer gives a chat."""
    return [rules(tokenizer), tokenizer.chat_template, tokenizer.mask_token_id]


def digest(values: Iterable[Any]) -> str:
    """SHA-256 of the values in their order, hex."""
    total = hashlib.sha256()
    for value in values:
        total.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def differences(state: dict[str, Any], mine: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the facts in which a checkpoint and a run differ."""
    written, own = flat(state), flat(mine)
    absent = object()
    names = sorted(written.keys() | own.keys())
    return [name for name in names if written.get(name, absent) != own.get(name, absent)]


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """A run's facts by name, those of its network behind a prefix."""
    network = {f"network.{key}": value for key, value in facts["config"].items()}
    return {**facts["recipe"], **network, **facts["given"]}


def read_run(path: Path) -> dict[str, Any]:
    """A checkpoint of a training run, on the CPU.

    Raises:
        ValueError: it is damaged, or does not tell what network and data it is of.
    """
    state = read_state(path, KINDS)
    if lacking := missing(state, FACTS):
        raise ValueError(
            f"{path} is of an earlier version, which drew other batches and kept no {lacking}: "
            "delete it to train from the first step"
        )
    return state


def read_state(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Args:
        path: of the file.
        kinds: what it has to hold -> of which kind.

    Raises:
        ValueError: it is damaged.
    """
    damaged = f"{path} is damaged: delete it to train from the first step"
    memory = ("can't allocate memory", "out of memory")
    broken = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*broken, pickle.UnpicklingError) as error:
        if any(text in str(error) for text in memory):
            raise  # the file is as good as it was
        raise ValueError(damaged) from error
    if not isinstance(state, dict):
        raise ValueError(damaged)
    if lacking := missing(state, kinds):
        raise ValueError(f"{damaged}; it lacks {lacking}")
    return state


def missing(state: dict[str, Any], kinds: Mapping[str, type]) -> str:
    """Names of what a checkpoint lacks, or has of another kind."""
    return ", ".join(name for name, kind in kinds.items() if not isinstance(state.get(name), kind))
