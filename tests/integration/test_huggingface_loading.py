"""Networks of every family generate; so do those whose layers accelerate keeps elsewhere."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM
from transformers.utils import logging

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


def same(model: Model, golden: Model, *, bits: bool = True) -> None:
    """Logits of a row, and what is generated; those to the bit where no module is sent for."""
    ids = torch.tensor([[1, 2, 300]])
    logits, whole = model.raw_logits(ids), golden.raw_logits(ids)
    if bits:
        assert torch.equal(logits, whole)
    # Modules that are sent for are called one by one, and an activation is then torch's own.
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
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
    same(model, golden, bits=not on_disk)


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
    same(dlm.as_model(network), golden, bits=False)


FAMILIES = Path(__file__).parent.parent / "golden" / "families"
AUTO = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")


@pytest.mark.one_in(2)
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


FILES: dict[str, dict[str, Any]] = {
    "dream": {"alg": "origin", "alg_temp": None, "eps": 1e-3, "steps": 512, "temperature": 0.4},
    "rnd1": {"num_diffusion_steps": 256, "algorithm": "entropy", "top_k": 5, "temperature": 0.4},
    "sdar": {"do_sample": True, "temperature": 0.4, "top_k": 5},
}
"""Options of the loops that were released with them, beside transformers' own."""


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs, as if nothing had been logged before."""
    logging.warning_once.cache_clear()
    logging.get_logger("transformers").addHandler(caplog.handler)
    yield caplog
    logging.get_logger("transformers").removeHandler(caplog.handler)


@pytest.mark.parametrize("name", FILES)
def test_options_of_the_released_code_are_left_aside(
    name: str, tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(FAMILIES / name, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(FILES[name]))
    with silence():
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        model = dlm.load(FAMILIES / name)
    ids = torch.tensor([[3, 4, 5]])
    meant = {k: v for k, v in FILES[name].items() if k in ("temperature", "top_k")}
    row = dlm.generate(model, [3, 4, 5], gen_length=4, **meant).tokens[0]
    strange = sorted(FILES[name].keys() - meant.keys() - {"do_sample"})
    lifted: dict[str, Any] = dict.fromkeys(strange)
    config = dlm.DiffusionGenerationConfig()
    every: list[dict[str, Any]] = [{}, {"generation_config": config}, lifted]
    for options in every:
        out = network.generate(ids, max_new_tokens=4, **options)
        assert out[0, 3:].tolist() == row
    # A record once: whoever turned propagation on has it handled twice.
    told = {id(r): r.message for r in warned.records if "left aside" in r.message}
    assert len(told) == bool(strange)
    assert ", ".join(strange) in "".join(told.values())
    as_loaded = dlm.as_model(network).network.generate(ids, max_new_tokens=4)
    assert as_loaded[0, 3:].tolist() == row
    for option in {"alg", "num_diffusion_steps"}.intersection(strange):
        with pytest.raises(ValueError, match=f"unknown option '{option}'"):
            network.generate(ids, max_new_tokens=4, **{option: 3})


def test_a_tokenizer_that_is_not_there_is_looked_for_once(
    golden_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = AutoModelForMaskedLM.from_pretrained(golden_folder)
    looked: list[object] = []

    def nothing(*given: object) -> None:
        looked.append(given)

    monkeypatch.setattr("dlm.huggingface.checkpoint.Origin.tokenizer", nothing)
    for _ in range(2):
        network.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=2)
    assert len(looked) == 1
