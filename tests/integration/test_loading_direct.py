"""Weights read without transformers' loader, `direct=True`: what it does with odd files too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dlm
from dlm.models.weights import INDEX, SINGLE

IDS = torch.tensor([[5, 6, 7, 8, 9]])
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])


def copied(source: Path, folder: Path, shards: list[dict[str, Tensor]]) -> Path:
    """A checkpoint with the configuration of another, its weights in one file or in several."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    else:
        places = {key: name for name, part in zip(names, shards, strict=True) for key in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name, part in zip(names, shards, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    return folder


def released(written: Callable[[str], Path], family: str) -> tuple[Path, dict[str, Tensor]]:
    folder = written(family)
    return folder, load_file(folder / SINGLE)


def logits(folder: Path, **options: Any) -> Tensor:
    return dlm.load(folder, mask_id=91, **options).raw_logits(IDS)


@pytest.mark.parametrize("family", ["a2d-qwen3", "illada", "fast-dllm-v2"])
@pytest.mark.parametrize("last", [EMBEDDING, HEAD])
def test_a_tied_pair_of_which_both_differ_is_not_tied(
    family: str, last: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, family)
    weights[HEAD] = weights[EMBEDDING].flip(0)
    one = {name: weights.pop(name) for name in (EMBEDDING, HEAD) if name == last}
    folder = copied(source, tmp_path / "model", [weights, one])
    model = dlm.load(folder, direct=True)
    head, embedding = model.network.lm_head.weight, model.network.model.embed_tokens.weight
    assert torch.equal(head, embedding.flip(0))
    assert torch.equal(model.raw_logits(IDS), dlm.load(folder).raw_logits(IDS))


@BOTH
@pytest.mark.parametrize("kept", [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD)])
def test_a_tied_pair_of_which_one_is_there_or_both_are_equal_is_tied(
    kept: tuple[str, ...], direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "a2d-qwen3")
    matrix = weights.pop(EMBEDDING)
    weights |= {name: matrix.clone() for name in kept}
    network = dlm.load(copied(source, tmp_path / "model", [weights]), direct=direct).network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert torch.equal(network.lm_head.weight, matrix)


@BOTH
def test_a_tied_pair_of_which_none_is_there_is_missing(
    direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "a2d-qwen3")
    del weights[EMBEDDING]
    with pytest.raises(ValueError, match=r"missing.*: .*embed_tokens\.weight"):
        dlm.load(copied(source, tmp_path / "model", [weights]), direct=direct)


@BOTH
@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_an_expert_that_is_there_twice_stands_for_no_other(
    part: str, direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "sdar-moe")
    stem = "model.layers.0.mlp.experts"
    del weights[f"{stem}.3.{part}_proj.weight"]
    again = {name: weights[name] for name in [f"{stem}.2.{part}_proj.weight"]}
    with pytest.raises(ValueError, match="the weights of"):
        dlm.load(copied(source, tmp_path / "model", [weights, again]), direct=direct)


@BOTH
def test_a_weight_in_two_shards_is_no_fault(
    direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "sdar-moe")
    again = {name: weights[name] for name in ["model.layers.0.mlp.experts.2.up_proj.weight"]}
    folder = copied(source, tmp_path / "model", [weights, again])
    assert torch.equal(logits(folder, direct=direct), logits(source, direct=direct))


def test_a_single_file_goes_before_an_index(written: Callable[[str], Path], tmp_path: Path) -> None:
    source, weights = released(written, "sdar")
    names = sorted(weights)
    others = {name: weights[name] + 1 for name in names}
    halves = [{n: others[n] for n in names[:9]}, {n: others[n] for n in names[9:]}]
    folder = copied(source, tmp_path / "model", halves)
    assert not torch.equal(logits(folder, direct=True), logits(source))
    copied(source, folder, [weights])
    assert (folder / INDEX).exists()
    for direct in (False, True):
        assert torch.equal(logits(folder, direct=direct), logits(source))


@BOTH
def test_stored_rotary_frequencies_are_not_read(
    direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "sdar")
    for stem in ("model", "model.layers.1.self_attn"):
        weights[f"{stem}.rotary_emb.inv_freq"] = torch.zeros(8)
    folder = copied(source, tmp_path / "model", [weights])
    assert torch.equal(logits(folder, direct=direct), logits(source))


@BOTH
@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[]", r"must hold an object, got \[\]"),
        ("{}", r"must hold metadata, and a weight_map .* got \[\]"),
        ('{"metadata": {}, "weight_map": {}}', "a weight_map that names the file of every weight"),
        ('{"metadata": {}, "weight_map": {"a": 3}}', "a weight_map that names the file"),
        ('{"weight_map": {"a": "b"}}', "must hold metadata"),
    ],
)
def test_broken_indices_are_refused(
    index: str, message: str, direct: bool, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source, weights = released(written, "sdar")
    names = sorted(weights)
    halves = [{n: weights[n] for n in names[:9]}, {n: weights[n] for n in names[9:]}]
    folder = copied(source, tmp_path / "model", halves)
    (folder / INDEX).write_text(index)
    with pytest.raises(ValueError, match=f"cannot read {INDEX} of .*{message}"):
        dlm.load(folder, direct=direct)
