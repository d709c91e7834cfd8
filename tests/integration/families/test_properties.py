"""What holds for every decoder-shaped family: topology, padding, rotation, names, both loaders."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dlm
from dlm.models.model import Model
from dlm.models.weights import check_rotary

SHIFTED = {"coda", "diffullama", "dream", "rnd1", "fast-dllm-v2", "open-dcoder"}
BLOCKS = {
    "llada2": 8,
    "sdar": 4,
    "sdar-moe": 4,
    "dream-reasoner": 8,
    "fast-dllm-v2": 8,
    "bd3lm": 4,
    "stable-diffcoder": 4,
}
ANYWHERE = {"nemotron-labs-diffusion": 8, "wedlm": 128}
"""Families whose blocks begin where decoding has them begin, and how long they are."""


def tokens(length: int = 24) -> Tensor:
    return torch.randint(3, 85, (1, length), generator=torch.Generator().manual_seed(4))


def both_ways(model: Model) -> Model:
    return replace(model, spec=replace(model.spec, block_size=None))


def test_topology_and_shift_are_the_familys(name: str, model: Model) -> None:
    assert model.spec.shift == (name in SHIFTED)
    assert model.spec.block_size == (BLOCKS | ANYWHERE).get(name)
    assert model.spec.grid == BLOCKS.get(name)
    assert model.spec.causal == (name in ANYWHERE)


@torch.no_grad()
def test_the_engine_reads_a_token_where_it_is_predicted(name: str, model: Model) -> None:
    ids = tokens()
    columns = torch.arange(ids.shape[1])[None]
    hidden, states = model.hidden(ids, columns, None), model.states(ids, columns, None)
    if name in SHIFTED:
        assert torch.equal(hidden[:, 1:], states[:, :-1])
    else:
        assert torch.equal(hidden, states)


def test_every_token_sees_every_token_without_blocks(model: Model) -> None:
    if model.spec.reordered:
        pytest.skip("its tokens see no later ones")
    ids = tokens()
    changed = ids.clone()
    changed[0, -1] += 1
    before, after = (both_ways(model).raw_logits(row) for row in (ids, changed))
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_blocks_do_not_see_later_ones(
    name: str, folder: Path, asked: dict[str, Any], attention: str
) -> None:
    """Bit for bit, and the block itself does; experts are sorted by token, hence the order."""
    size = BLOCKS.get(name)
    if size is None:
        pytest.skip("has no grid of blocks")
    model = dlm.load(folder, dtype="float32", attn_implementation=attention, **asked)
    ids = tokens()
    for place in range(24):
        changed = ids.clone()
        changed[0, place] += 1
        before, after = model.raw_logits(ids)[0], model.raw_logits(changed)[0]
        first = place // size * size
        tolerance = 1e-4 if name in ("llada2", "sdar-moe") else 0
        torch.testing.assert_close(before[:first], after[:first], atol=tolerance, rtol=0)
        assert ((before - after)[first : first + size].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_change_a_row(name: str, model: Model, side: str) -> None:
    """Positions are those of the columns, which rotary embedding sees by their distance only."""
    if side == "left" and name == "nemotron-labs-diffusion":
        pytest.skip("its queries are scaled by where they are")
    size = model.spec.block_size or 5
    ids, padding = tokens(16), torch.full((1, size), 2)
    kept = slice(size, None) if side == "left" else slice(16)
    whole = torch.cat((padding, ids) if side == "left" else (ids, padding), 1)
    valid = torch.ones_like(whole, dtype=torch.bool)
    valid[:, :size] = side == "right"
    valid[:, 16:] = valid[:, 16:] & (side == "left")
    columns = torch.arange(whole.shape[1])[None]
    alone = model.logits(model.states(ids, columns[:, :16], None))
    among = model.logits(model.states(whole, columns, valid))[:, kept]
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=0)
    seen = model.logits(both_ways(model).states(whole, columns, None))[:, kept]
    assert ((seen - alone).abs().max() > 1e-3) == (side == "left" or not model.spec.reordered)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_survive_loading(
    folder: Path, asked: dict[str, Any], dtype: str
) -> None:
    network = dlm.load(folder, dtype=dtype, **asked).network
    found = [m.inv_freq for m in network.modules() if hasattr(m, "inv_freq")]
    assert len(found) == 1
    assert found[0].dtype == torch.float32
    assert found[0][0] == 1
    assert (found[0].diff() < 0).all()


def test_saving_keeps_names_and_tensors(
    folder: Path, asked: dict[str, Any], model: Model, released: dict[str, Tensor], tmp_path: Path
) -> None:
    model.network.save_pretrained(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == released.keys()
    assert all(torch.equal(after[key], released[key]) for key in released)
    before, saved = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert saved["model_type"] == before["model_type"]
    assert saved["architectures"] == before["architectures"]
    assert "auto_map" not in saved
    again = dlm.load(tmp_path, dtype="float32", **asked)
    assert again.spec == model.spec
    assert torch.equal(again.raw_logits(tokens()), model.raw_logits(tokens()))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_both_loaders_give_the_same_bits(
    folder: Path, asked: dict[str, Any], model: Model, tmp_path: Path, dtype: str, shards: bool
) -> None:
    source = folder
    if shards:
        source = tmp_path
        model.network.save_pretrained(source, max_shard_size="100KB")
        assert len(list(source.glob("*.safetensors"))) > 1
    ours, theirs = (
        dlm.load(source, dtype=dtype, direct=direct, **asked) for direct in (True, False)
    )
    mine, other = (found.network.state_dict() for found in (ours, theirs))
    assert mine.keys() == other.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key
    assert not any(tensor.is_meta for tensor in (*mine.values(), *ours.network.buffers()))
    # Products of the same bits round differently by where in a file these begin.
    for tensor in (*theirs.network.parameters(), *theirs.network.buffers()):
        tensor.data = tensor.data.clone()
    assert torch.equal(ours.raw_logits(tokens()), theirs.raw_logits(tokens()))
    assert ours.spec == theirs.spec


def test_device_map(folder: Path, asked: dict[str, Any], model: Model) -> None:
    spread = dlm.load(folder, dtype="float32", device_map="auto", **asked)
    assert torch.equal(spread.raw_logits(tokens()), model.raw_logits(tokens()))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit(
    folder: Path,
    asked: dict[str, Any],
    released: dict[str, Tensor],
    tmp_path: Path,
    damage: str,
    direct: bool,
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    key = max(key for key in released if re.search(r"\.1\..*(proj|mlp\.2|ff_out)\.weight$", key))
    tensor = released[key]
    kept = {k: v for k, v in released.items() if k != key}
    if damage == "unexpected":
        kept |= {key: tensor, key.replace(".1.", ".77."): tensor.clone()}
    if damage == "shape":
        kept[key] = tensor[:, :-1].contiguous()
    save_file(kept, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot load the weights|do not fit"):
        dlm.load(bad, direct=direct, **asked)


@pytest.mark.parametrize("change", [[2.0], [1.0, 0.5, 0.6], [1.0, 0.9]], ids=str)
def test_spoilt_rotary_frequencies_are_refused(
    folder: Path, asked: dict[str, Any], model: Model, change: list[float]
) -> None:
    """Another first one, one that rises, and such as belong to another theta."""
    copy = dlm.load(folder, dtype="float32", **asked)
    check_rotary("here", copy.network)
    buffer = next(m.inv_freq for m in copy.network.modules() if hasattr(m, "inv_freq"))
    assert torch.equal(
        buffer, next(m.inv_freq for m in model.network.modules() if hasattr(m, "inv_freq"))
    )
    buffer[: len(change)] = torch.tensor(change)
    with pytest.raises(ValueError, match=r"inv_freq of 'here' must fall from 1"):
        check_rotary("here", copy.network)


def test_memory_as_it_is_found_is_refused(
    folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loading gives where nothing computes the frequencies again."""

    def forget(self: Any, module: Any) -> None:
        for buffer in module.buffers(recurse=False):
            buffer.fill_(0.25)

    for base in ("transformer.Bidirectional", "dit.Dit"):
        monkeypatch.setattr(f"dlm.models.{base}._init_weights", forget)
    if "inv_freq" in str(sorted(load_file(folder / "model.safetensors"))):
        pytest.skip("the checkpoint holds them")
    for direct in (False, True):
        with pytest.raises(ValueError, match=r"inv_freq of .* must fall from 1"):
            dlm.load(folder, direct=direct, **asked)
