"""What a checkpoint records about its run, so that only the same run can resume from it."""

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
"""Fields of every checkpoint and their types; `network` holds the weights."""

FACTS = {"config": dict, "given": dict}
"""Fields that describe the network and the data; earlier versions did not write them."""


def facts(recipe: dict[str, Any], network: Any, batches: Batches) -> dict[str, dict[str, Any]]:
    """Everything that determines a run's result, in values `torch.load` reads without pickle."""
    own = ((example.prompt, example.response) for example in batches.examples)
    given = {
        "examples": digest(own),
        "held_out": digest(sorted(batches.held_out)),
        "tokenizer": digest(words(batches.tokenizer)),
    }
    return {"recipe": recipe, "config": configuration(network), "given": given}


def words(tokenizer: Any) -> list[Any]:
    """What determines the token ids that a tokenizer gives a chat."""
    return [rules(tokenizer), tokenizer.chat_template, tokenizer.mask_token_id]


def digest(values: Iterable[Any]) -> str:
    """SHA-256 of the values in their order, hex."""
    total = hashlib.sha256()
    for value in values:
        total.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def differences(state: dict[str, Any], mine: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the facts that differ between a checkpoint and a run."""
    written, own = flat(state), flat(mine)
    absent = object()
    names = sorted(written.keys() | own.keys())
    return [name for name in names if written.get(name, absent) != own.get(name, absent)]


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run in one flat dict; those of the network get a prefix."""
    network = {f"network.{key}": value for key, value in facts["config"].items()}
    return {**facts["recipe"], **network, **facts["given"]}


def read_run(path: Path) -> dict[str, Any]:
    """Load the checkpoint of a training run on the CPU.

    Raises:
        ValueError: it is damaged, or does not describe its network and data.
    """
    state = read_state(path, KINDS)
    if lacking := missing(state, FACTS):
        raise ValueError(
            f"{path} is of an earlier version, which drew other batches and kept no {lacking}: "
            "delete it to train from the first step"
        )
    return state


def read_state(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Load a checkpoint on the CPU.

    Args:
        path: of the file.
        kinds: the required fields and their types.

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
            raise  # not the file's fault
        raise ValueError(damaged) from error
    if not isinstance(state, dict):
        raise ValueError(damaged)
    if lacking := missing(state, kinds):
        raise ValueError(f"{damaged}; it lacks {lacking}")
    return state


def missing(state: dict[str, Any], kinds: Mapping[str, type]) -> str:
    """Names of fields that a checkpoint lacks, or that have the wrong type."""
    return ", ".join(name for name, kind in kinds.items() if not isinstance(state.get(name), kind))
