"""Networks of every family generate; so do those whose layers accelerate keeps elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM

import dlm
from dlm.models.loading import silence
from dlm.models.model import Model

PROMPTS = [[5, 6], [17, 3, 300, 44, 9]]
HERE = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def same(model: Model, golden: Model) -> None:
    ids = torch.tensor([[1, 2, 300]])
    assert torch.equal(model.raw_logits(ids), golden.raw_logits(ids))
    every: list[dict[str, Any]] = [
        {},
        {"decoder": "threshold", "cache": "dual", "temperature": 0.7},
    ]
    for options in every:
        found, expected = (
            dlm.generate(one, PROMPTS, gen_length=20, **options).tokens for one in (model, golden)
        )
        assert found == expected
    out = model.network.generate(torch.tensor(PROMPTS[1:]), max_new_tokens=20)
    assert out[0, 5:].tolist() == dlm.generate(golden, PROMPTS[1], gen_length=20).tokens[0]


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, HERE], ids=["auto", "one", "disk"])
def test_device_maps(golden_folder: Path, golden: Model, device_map: Any) -> None:
    model = dlm.load(golden_folder, dtype="float32", device_map=device_map)
    on_disk = [n for n, p in model.network.named_parameters() if p.device.type == "meta"]
    assert bool(on_disk) == (device_map is HERE)
    same(model, golden)


def test_memory_limit(golden_folder: Path, golden: Model, tmp_path: Path) -> None:
    with silence():
        network = AutoModelForMaskedLM.from_pretrained(
            golden_folder,
            dtype="float32",
            device_map="auto",
            max_memory={"cpu": 400_000},
            offload_folder=tmp_path,
        )
    assert network.hf_device_map["model.embed_tokens"] == "cpu"
    assert "disk" in network.hf_device_map.values()
    same(dlm.as_model(network), golden)


FAMILIES = Path(__file__).parent.parent / "golden" / "families"
AUTO = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")


@pytest.mark.parametrize("auto", AUTO)
@pytest.mark.parametrize("name", sorted(p.name for p in FAMILIES.iterdir() if p.is_dir()))
def test_every_family_generates(name: str, auto: str) -> None:
    with silence():
        network = getattr(transformers, auto).from_pretrained(FAMILIES / name, dtype="float32")
        model = dlm.load(FAMILIES / name, dtype="float32")
    assert network.can_generate()
    assert dlm.as_model(network).spec == model.spec
    ids = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    out = network.generate(ids, attention_mask=mask, max_new_tokens=10, temperature=0.7)
    rows = dlm.generate(model, [[3, 4], [5, 6, 7, 8]], gen_length=10, temperature=0.7)
    assert out[:, 4:].tolist() == rows.tokens
