"""Adapters that transformers loads into a network: `network.load_adapter`."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION

import dlm
from dlm.models.loading import silence

IDS = torch.tensor([[5, 6, 7, 8, 9]])
PARTIAL = r"for all of the adapter .*o_proj.*dlm\.load\(adapter=\)"

peft = pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)  # as transformers would refuse
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft and transformers at odds


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with silence():
        yield


@pytest.fixture
def twice(golden_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An adapter, and the same under released names.

    `attn_out` is `o_proj` here, so that peft finds a layer for half of the weights alone.
    """
    names = ["q_proj", "o_proj"]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    network: Any = AutoModelForCausalLM.from_pretrained(golden_folder)
    peft.get_peft_model(network, config).save_pretrained(ours)
    shutil.copytree(ours, theirs)
    weights = load_file(ours / "adapter_model.safetensors")
    released = {
        re.sub(
            r"layers(.*)\.self_attn", r"transformer.blocks\1", n.replace("o_proj", "attn_out")
        ): w
        for n, w in weights.items()
    }
    released = {name.replace("o_proj", "attn_out"): each for name, each in released.items()}
    save_file(released, theirs / "adapter_model.safetensors")
    stated = json.loads((ours / "adapter_config.json").read_text())
    stated["target_modules"] = ["q_proj", "attn_out"]
    (theirs / "adapter_config.json").write_text(json.dumps(stated))
    return ours, theirs


def test_an_adapter_that_transformers_would_load_in_part_is_refused(
    golden_folder: Path, twice: tuple[Path, Path], tmp_path: Path
) -> None:
    """Before anything is changed: the network can be saved, and another adapter loaded."""
    _, theirs = twice
    network: Any = AutoModelForCausalLM.from_pretrained(golden_folder)
    plain, names = network(IDS).logits, [*network.state_dict()]
    with pytest.raises(ValueError, match=PARTIAL):
        network.load_adapter(theirs)
    with pytest.raises(ValueError, match=PARTIAL):
        network.load_adapter(
            peft_config=peft.PeftConfig.from_pretrained(theirs),
            adapter_state_dict=load_file(theirs / "adapter_model.safetensors"),
        )
    with pytest.raises(ValueError, match=PARTIAL):
        network.load_adapter(tmp_path, adapter_kwargs={"subfolder": "theirs"})
    torch.save(load_file(theirs / "adapter_model.safetensors"), theirs / "adapter_model.bin")
    (theirs / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=PARTIAL):
        network.load_adapter(theirs)
    assert [*network.state_dict()] == names
    assert torch.equal(network(IDS).logits, plain)
    network.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_an_adapter_that_is_refused_takes_no_place_of_another(
    golden_folder: Path, twice: tuple[Path, Path]
) -> None:
    """Also one that fits the network, but not the layers of the adapter whose place it takes."""
    ours, theirs = twice
    network: Any = AutoModelForCausalLM.from_pretrained(golden_folder)
    network.enable_peft_hotswap(target_rank=4)
    network.load_adapter(ours, adapter_name="default")
    adapted = network(IDS).logits
    network.load_adapter(theirs, adapter_name="default")  # whose weights all have a layer by now
    assert torch.equal(network(IDS).logits, adapted)
    wider = load_file(ours / "adapter_model.safetensors")
    wider["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] = torch.zeros(2, 48)
    with pytest.raises(ValueError, match=r"for all of the adapter .*up_proj"):
        network.load_adapter(
            adapter_name="default",
            peft_config=peft.PeftConfig.from_pretrained(ours),
            adapter_state_dict=wider,
        )
    weights = load_file(theirs / "adapter_model.safetensors")
    weights = {n.replace("attn_out", "nowhere_o_proj"): each for n, each in weights.items()}
    save_file(weights, theirs / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=PARTIAL):
        network.load_adapter(theirs, adapter_name="default")
    assert [*network.peft_config] == ["default"]
    assert torch.equal(network(IDS).logits, adapted)
    network.load_adapter(ours, adapter_name="default")
    assert torch.equal(network(IDS).logits, adapted)


@pytest.mark.parametrize("kind", ["dora", "nowhere"])
def test_what_transformers_would_pass_over_changes_nothing(
    kind: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Magnitudes of DoRA, whose names it takes for others; layers that are not in the network."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=kind == "dora")
    network: Any = AutoModelForCausalLM.from_pretrained(written("sdar"))
    peft.get_peft_model(network, config).save_pretrained(tmp_path)
    if kind == "nowhere":
        path = tmp_path / "adapter_model.safetensors"
        more = {name.replace("layers.0", "layers.9"): w for name, w in load_file(path).items()}
        save_file(load_file(path) | more, path)
    network = AutoModelForCausalLM.from_pretrained(written("sdar"))
    names = [*network.state_dict()]
    with pytest.raises(ValueError, match="for all of the adapter"):
        network.load_adapter(tmp_path)
    assert [*network.state_dict()] == names


@pytest.mark.parametrize("kind", ["head", "saved", "tokens", "decomposed", "ia3", "experts"])
def test_adapters_of_other_kinds_are_loaded_as_transformers_does(
    kind: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    layers = ["q_proj"]
    config = {
        "head": lambda: peft.LoraConfig(r=2, target_modules=[*layers, "lm_head", "embed_tokens"]),
        "saved": lambda: peft.LoraConfig(r=2, target_modules=layers, modules_to_save=["lm_head"]),
        "tokens": lambda: peft.LoraConfig(r=2, target_modules=layers, trainable_token_indices=[1]),
        "decomposed": lambda: peft.LoraConfig(
            r=2, target_modules=layers, init_lora_weights="pissa"
        ),
        "ia3": lambda: peft.IA3Config(target_modules=layers, feedforward_modules=[]),
        "experts": lambda: peft.LoraConfig(
            r=2, target_modules=layers, target_parameters=["mlp.experts.gate_up_proj"]
        ),
    }[kind]()
    folder = written("sdar-moe" if kind == "experts" else "sdar")
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(network, config).save_pretrained(tmp_path)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
        if PreTrainedModel.load_adapter(theirs, str(tmp_path)).unexpected_keys:
            pytest.skip("this version of transformers passes some over")
        network = AutoModelForCausalLM.from_pretrained(folder)
        network.load_adapter(tmp_path)
    assert torch.equal(network(IDS).logits, theirs(IDS).logits)
    assert network.state_dict().keys() == theirs.state_dict().keys()


def test_an_adapter_with_released_names_is_that_with_ours(
    golden_folder: Path, twice: tuple[Path, Path]
) -> None:
    ours, theirs = twice
    network: Any = AutoModelForCausalLM.from_pretrained(golden_folder)
    plain = network(IDS).logits
    network.load_adapter(ours)
    adapted = dlm.load(golden_folder, adapter=theirs).raw_logits(IDS)
    torch.testing.assert_close(network(IDS).logits, adapted, atol=1e-4, rtol=0)
    assert (adapted - plain).abs().max() > 0.1
