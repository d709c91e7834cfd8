"""Adapters in the format of peft: read, merged, refused."""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dlm
from dlm.distill.certainty_recipe import Recipe, adapter_config
from dlm.models.adapter import CONFIG, WEIGHTS, attach, wrap, write

FAMILIES = Path(__file__).parent.parent / "golden" / "families"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def base(name: str, golden_folder: Path) -> Path:
    return golden_folder if name == "llada" else FAMILIES / name


def make(folder: Path, out: Path, **recipe: Any) -> Tensor:
    """Write an adapter that changes something; the logits it gives."""
    model = dlm.load(folder, dtype="float32")
    torch.manual_seed(1)
    wrapped = wrap(model.network, adapter_config(model.network, Recipe(**{"rank": 3} | recipe)))
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    write(wrapped, out, None)
    return model.raw_logits(IDS)


@pytest.fixture
def adapter(golden_folder: Path, tmp_path: Path) -> Path:
    make(golden_folder, tmp_path / "adapter")
    return tmp_path / "adapter"


def restate(adapter: Path, **changes: Any) -> None:
    stated = json.loads((adapter / CONFIG).read_text()) | changes
    (adapter / CONFIG).write_text(json.dumps(stated))


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "llada_moe"])
def test_an_adapter_comes_back_as_it_was(name: str, golden_folder: Path, tmp_path: Path) -> None:
    folder = base(name, golden_folder)
    expected = make(folder, tmp_path)
    plain = dlm.load(folder, dtype="float32").raw_logits(IDS)
    assert (plain - expected).abs().max() > 0.1
    found = dlm.load(folder, dtype="float32", adapter=tmp_path)
    assert torch.equal(found.raw_logits(IDS), expected)
    assert not found.network.training
    assert not any(weight.requires_grad for weight in found.network.parameters())
    merged = dlm.load(folder, dtype="float32", adapter=tmp_path, merge=True)
    torch.testing.assert_close(merged.raw_logits(IDS), expected, rtol=0, atol=1e-3)
    names = dlm.load(folder, dtype="float32").network.state_dict().keys()
    assert merged.network.state_dict().keys() == names


def test_peft_reads_what_is_written(golden_folder: Path, adapter: Path) -> None:
    import peft

    expected = dlm.load(golden_folder, dtype="float32", adapter=adapter).raw_logits(IDS)
    model = dlm.load(golden_folder, dtype="float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is dep", FutureWarning)
        peft.PeftModel.from_pretrained(model.network, str(adapter))
    assert torch.equal(model.raw_logits(IDS), expected)


def test_the_same_adapter_is_the_same_bytes(golden_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(golden_folder, tmp_path / name)
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["base_model_name_or_path"] is None


def test_a_write_that_fails_leaves_the_adapter_that_was_there(
    golden_folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"torn")
        raise OSError("no space")

    monkeypatch.setattr("dlm.models.adapter.save_file", torn)
    with pytest.raises(OSError, match="no space"):
        make(golden_folder, adapter, alpha=7.0)
    assert {name: (adapter / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    make(golden_folder, adapter, alpha=7.0)
    assert sorted(path.name for path in adapter.iterdir()) == [CONFIG, WEIGHTS]


def test_released_names_are_understood(golden_folder: Path, adapter: Path) -> None:
    expected = dlm.load(golden_folder, dtype="float32", adapter=adapter).raw_logits(IDS)
    released = {
        "model.layers.": "model.transformer.blocks.",
        "self_attn.o_proj": "attn_out",
        "self_attn.": "",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    weights = {}
    for name, weight in load_file(adapter / WEIGHTS).items():
        for ours, theirs in released.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    save_file(weights, adapter / WEIGHTS)
    restate(adapter, target_modules=["q_proj", "attn_out", "ff_out"], layers_to_transform=None)
    found = dlm.load(golden_folder, dtype="float32", adapter=adapter)
    assert torch.equal(found.raw_logits(IDS), expected)
    restate(adapter, rank_pattern={"ff_out": 3})
    with pytest.raises(ValueError, match="under names of the released code"):
        dlm.load(golden_folder, dtype="float32", adapter=adapter)


def test_an_adapter_of_another_family_is_refused(adapter: Path) -> None:
    with pytest.raises(ValueError, match="trained for a LLaDAModelLM, this is a DreamModel"):
        dlm.load(FAMILIES / "dream", adapter=adapter)
    restate(adapter, auto_mapping=None)
    with pytest.raises(ValueError, match="belongs to another network"):
        dlm.load(FAMILIES / "mdlm", adapter=adapter)


def test_an_adapter_of_another_size_is_refused(adapter: Path) -> None:
    with pytest.raises(ValueError, match=r"another network: base_model.* must have the shape \["):
        dlm.load(adapter=adapter)


def test_a_missing_layer_is_refused(golden_folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    more = {"base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight": torch.zeros(3, 8)}
    save_file(weights | more, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"has no layer model.layers.99.self_attn.q_proj"):
        dlm.load(golden_folder, adapter=adapter)


def test_half_a_layer_is_refused(golden_folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    gone = next(name for name in weights if "lora_B" in name)
    save_file({n: w for n, w in weights.items() if n != gone}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"does not fit its configuration: .*lora_B"):
        dlm.load(golden_folder, adapter=adapter)


def test_numbers_that_are_none_are_refused(golden_folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    next(iter(weights.values()))[0] = torch.nan
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"is broken: .* is not finite"):
        dlm.load(golden_folder, adapter=adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be .* got 'pissa'"),
        ({"r": "many"}, "r must be an int >= 1, got 'many'"),
        ({"bias": "lora_only"}, "bias must be 'none', got 'lora_only'"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save must be null, got \['norm'\]"),
        ({"target_parameters": ["w"]}, r"target_parameters must be null, got \['w'\]"),
        ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens must be null, got \[3\]"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication must be null, got \[\[0, 2\]\]"),
        ({"megatron_config": {"a": 1}}, r"megatron_config must be null, got \{'a': 1\}"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be .* got nan"),
        ({"lora_alpha": "x"}, "lora_alpha must be .* got 'x'"),
    ],
)
def test_other_configurations_are_refused(
    golden_folder: Path, adapter: Path, changes: dict[str, Any], message: str
) -> None:
    restate(adapter, **changes)
    with pytest.raises(ValueError, match=message):
        dlm.load(golden_folder, adapter=adapter)


def of_peft(folder: Path, out: Path, **options: Any) -> Tensor:
    """Let peft write an adapter that changes something; the logits it gives."""
    import peft

    model = dlm.load(folder, dtype="float32")
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model.network, peft.LoraConfig(r=2, **options))
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora" in name:
                weight.normal_(std=0.3)
    wrapped.save_pretrained(str(out))
    return model.raw_logits(IDS)


ENDS = {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}


@pytest.mark.filterwarnings("ignore")  # peft's, of embeddings that it saves
def test_embeddings_that_peft_writes_beside_an_adapter_are_the_networks(tmp_path: Path) -> None:
    folder = FAMILIES / "dream"
    expected = of_peft(folder, tmp_path, **ENDS)
    weights = load_file(tmp_path / WEIGHTS)
    copy = next(name for name in weights if "embed_tokens.base_layer" in name)
    for merge in (False, True):
        found = dlm.load(folder, dtype="float32", adapter=tmp_path, merge=merge)
        torch.testing.assert_close(found.raw_logits(IDS), expected, rtol=0, atol=1e-3)
    weights[copy][3, 0] += 1
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"must hold tensors .* alone, got .*base_layer.weight"):
        dlm.load(folder, dtype="float32", adapter=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_end_is_not_merged_into_what_both_ends_share(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    network = dlm.load(FAMILIES / "dream", dtype="float32").network
    stated = network.config.to_dict() | {"tie_word_embeddings": True}
    type(network)(type(network.config).from_dict(stated)).save_pretrained(folder)
    expected = of_peft(folder, tmp_path / "adapter", target_modules=["embed_tokens"])
    found = dlm.load(folder, dtype="float32", adapter=tmp_path / "adapter")
    assert torch.equal(found.raw_logits(IDS), expected)
    with pytest.raises(ValueError, match=r"the weight of model.embed_tokens is that of the other"):
        dlm.load(folder, dtype="float32", adapter=tmp_path / "adapter", merge=True)


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_place_in_a_layer_is_not_merged(tmp_path: Path) -> None:
    folder = FAMILIES / "sdar"  # whose projections have no bias
    of_peft(folder, tmp_path, target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(ValueError, match=r"cannot be merged: .*lora_bias"):
        dlm.load(folder, dtype="float32", adapter=tmp_path, merge=True)


def test_pickles_are_not_read(golden_folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors in .*pickles are not read"):
        dlm.load(golden_folder, adapter=adapter)
    shutil.copy(golden_folder / "model.safetensors", adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"must hold tensors base_model.model.LAYER.lora_"):
        dlm.load(golden_folder, adapter=adapter)


def test_places_and_options_are_checked(golden_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter folder at"):
        dlm.load(golden_folder, adapter=tmp_path / "none")
    with pytest.raises(ValueError, match=r"no adapter_config.json in the adapter"):
        dlm.load(golden_folder, adapter=tmp_path)
    with pytest.raises(ValueError, match="give adapter as well"):
        dlm.load(golden_folder, merge=True)
    with pytest.raises(ValueError, match="adapter must be a folder or a Hugging Face id, got ''"):
        dlm.load(golden_folder, adapter="")


def test_without_peft_a_line_says_what_to_install(
    golden_folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'adapters need peft: pip install -e "\.\[train\]"'):
        dlm.load(golden_folder, adapter=adapter)


def test_weights_that_were_sent_away_are_refused(golden_folder: Path, adapter: Path) -> None:
    network = dlm.load(golden_folder).network.to("meta")
    with pytest.raises(ValueError, match="leave out a device_map"):
        attach(network, str(adapter), merge=False)
