"""Networks that were changed once they were loaded: adapters of peft, other vocabularies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.integrations.peft import MIN_PEFT_VERSION

import dlm
from dlm.models.loading import silence

IDS = torch.tensor([[5, 6, 7, 8, 9]])
OPTIONS: dict[str, Any] = {"decoder": "threshold", "max_new_tokens": 12}
FAMILIES = ["llada", "dream", "sdar", "a2d-qwen3"]

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft and transformers at odds


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with silence():
        yield


def adapted(folder: Path, task: str | None = "CAUSAL_LM") -> Any:
    """A `PeftModel` whose adapter changes something."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return wrapped.eval()


def written_by(network: Any) -> Tensor:
    return torch.as_tensor(network.generate(input_ids=IDS, **OPTIONS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llada", "llada2", "mdlm"])
def test_a_cast_is_a_load_in_that_dtype(
    family: str, dtype: torch.dtype, written: Callable[[str], Path]
) -> None:
    """Also there and back: neither angles nor the bias of a router are rounded on the way."""
    folder = written(family)
    kind: Any = AutoModelForMaskedLM
    loaded = kind.from_pretrained(folder, dtype=dtype)
    wide = kind.from_pretrained(folder, dtype=torch.float32)
    buffers = dict(wide.named_buffers())
    cast = kind.from_pretrained(folder, dtype=torch.float32).to(dtype)
    assert torch.equal(cast(IDS).logits, loaded(IDS).logits)
    for name, buffer in cast.float().named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert {buffer.dtype for buffer in cast.double().buffers()} == {torch.float64}
    assert cast.to("meta").half().dtype == torch.float16


def test_experts_in_float64(written: Callable[[str], Path]) -> None:
    """Torch's grouped products have no such dtype."""
    kind, folder = AutoModelForCausalLM, written("sdar-moe")
    usual, wide = kind.from_pretrained(folder), kind.from_pretrained(folder, dtype="float64")
    torch.testing.assert_close(wide(IDS).logits.float(), usual(IDS).logits, atol=1e-4, rtol=0)


def test_stop_ids_that_are_written_down_count(written: Callable[[str], Path]) -> None:
    """As the keyword does, for `dlm.generate` too; one of the checkpoint's own keeps the others."""
    network: Any = AutoModelForCausalLM.from_pretrained(written("llada"))
    own = dlm.as_model(network).spec.stop_ids
    for ids, expected in ((own[0], own), ([70, 71], (70, 71)), (70, (70,)), (None, own)):
        network.generation_config.eos_token_id = ids
        assert dlm.as_model(network).spec.stop_ids == expected
        assert network.model_for({"eos_token_id": ids}, None).spec.stop_ids == expected
        assert network.model_for({"eos_token_id": 72}, None).spec.stop_ids == (72,)
    network.generation_config.eos_token_id = 90_000
    with pytest.raises(ValueError, match="eos_token_id must be an int <= "):
        dlm.as_model(network)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_wraps_and_generates(
    family: str, task: str | None, written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = written(family)
    wrapped = adapted(folder, task)
    expected = written_by(wrapped)
    assert not torch.equal(expected, written_by(AutoModelForCausalLM.from_pretrained(folder)))
    assert torch.equal(expected, written_by(wrapped.get_base_model()))
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert torch.equal(written_by(again), expected)
    assert torch.equal(written_by(dlm.load(folder, adapter=tmp_path).network), expected)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", "TOKEN_CLS", None])
def test_peft_hands_on_what_a_forward_takes(
    task: str | None, written: Callable[[str], Path]
) -> None:
    wrapped = adapted(written("llada"), task)
    inner = wrapped.get_base_model()
    assert torch.equal(wrapped(input_ids=IDS).logits, inner(IDS).logits)
    if task != "FEATURE_EXTRACTION":  # which has none
        assert torch.equal(wrapped(input_ids=IDS, labels=IDS).loss, inner(IDS, labels=IDS).loss)


def test_peft_wraps_a_diffusion_transformer(written: Callable[[str], Path]) -> None:
    network = AutoModelForMaskedLM.from_pretrained(written("mdlm")).eval()
    expected = network(IDS).logits
    config = peft.LoraConfig(r=2, target_modules=["attn_qkv"], task_type="CAUSAL_LM")
    assert torch.equal(peft.get_peft_model(network, config)(input_ids=IDS).logits, expected)


def test_inputs_that_peft_prepares_from_the_networks_own(written: Callable[[str], Path]) -> None:
    mask = torch.ones_like(IDS)
    found = adapted(written("llada")).prepare_inputs_for_generation(IDS, attention_mask=mask)
    assert found["input_ids"] is IDS
    assert found["attention_mask"] is mask


def test_learned_prompts_are_refused(written: Callable[[str], Path]) -> None:
    network: Any = AutoModelForCausalLM.from_pretrained(written("sdar"))
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=48, num_layers=2
    )
    wrapped = peft.get_peft_model(network, config)
    with pytest.raises(ValueError, match="prompts that peft learned have no place on a canvas"):
        written_by(wrapped)
    assert written_by(network).shape == (1, 17)  # by itself, it has none


@pytest.mark.parametrize("by", ["peft", "dlm"])
def test_a_network_with_an_adapter_in_its_layers_is_not_saved(
    by: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, adapter, out = written("llada"), tmp_path / "adapter", tmp_path / "out"
    wrapped = adapted(folder)
    wrapped.save_pretrained(adapter)
    network = dlm.load(folder, adapter=adapter).network if by == "dlm" else wrapped.get_base_model()
    with pytest.raises(ValueError, match="without an adapter in its layers: load it with merge=Tr"):
        network.save_pretrained(out)
    assert not out.exists()
    merged = dlm.load(folder, adapter=adapter, merge=True)
    merged.network.save_pretrained(out)
    assert torch.equal(dlm.load(out).raw_logits(IDS), merged.raw_logits(IDS))
    wrapped.merge_and_unload().save_pretrained(tmp_path / "other")
    saved, expected = (dlm.load(place).raw_logits(IDS) for place in (tmp_path / "other", out))
    torch.testing.assert_close(saved, expected)


def test_an_encoder_with_an_adapter_in_its_layers_is_not_saved(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    network = dlm.load(written("encoder")).network
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query"]), network.network)
    with pytest.raises(ValueError, match="without an adapter in its layers"):
        network.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_transformers_loaded_is_saved_alone(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)  # as transformers would refuse
    adapted(written("sdar")).save_pretrained(tmp_path / "adapter")
    network: Any = AutoModelForCausalLM.from_pretrained(written("sdar"))
    network.load_adapter(tmp_path / "adapter")
    network.save_pretrained(tmp_path / "again")
    names = [load_file(tmp_path / at / "adapter_model.safetensors") for at in ("adapter", "again")]
    assert names[0].keys() == names[1].keys()
    assert not (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize("rows", [100, 93])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_number_of_tokens(
    family: str, rows: int, written: Callable[[str], Path], tmp_path: Path
) -> None:
    network: Any = AutoModelForMaskedLM.from_pretrained(written(family))
    embedding = network.resize_token_embeddings(rows)
    assert embedding.weight.shape == network.lm_head.weight.shape == (rows, 48)
    assert (network.config.vocab_size, network.config.embedding_size) == (rows, rows)
    expected = written_by(network)
    network.save_pretrained(tmp_path)
    for direct in (False, True):
        model = dlm.load(tmp_path, direct=direct)
        assert (model.spec.vocab_size, model.spec.unused) == (rows, (rows, rows))
        assert torch.equal(written_by(model.network), expected)


def released(folder: Path, **tokens: Any) -> Any:
    """A small network with LLaDA's vocabulary, whose number of rows tells what no file does."""
    kind = type(AutoModelForMaskedLM.from_pretrained(folder))
    small = AutoConfig.from_pretrained(folder)
    sizes = {"vocab_size": 126464, "embedding_size": 126464, "mask_token_id": None}
    return kind(type(small).from_dict(small.to_dict() | sizes | tokens))


def test_stop_ids_that_are_written_down_outlive_another_vocabulary(
    written: Callable[[str], Path],
) -> None:
    network = released(written("llada"), eos_token_id=126081)
    network.adjust_generation_fn(None, False, None, None)  # as loading ends
    assert dlm.as_model(network).spec.stop_ids == (126081, 126348)
    network.generation_config.eos_token_id = [70]
    network.resize_token_embeddings(126472)
    assert dlm.as_model(network).spec.stop_ids == (70,)
    network.generation_config.eos_token_id = [71]
    assert dlm.as_model(network).spec.stop_ids == (71,)


def test_a_released_vocabulary_keeps_its_tokens_at_another_size(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    network = released(written("llada"), eos_token_id=None)
    before = dlm.as_model(network).spec
    assert (before.mask_id, before.stop_ids) == (126336, (126081, 126348))
    network.resize_token_embeddings(126472)
    network.save_pretrained(tmp_path)
    for found in (dlm.as_model(network).spec, dlm.load(tmp_path).spec):
        assert (found.mask_id, found.stop_ids) == (before.mask_id, before.stop_ids)
        assert found.vocab_size == 126472


def test_rows_that_no_token_owns_after_another_number_of_tokens(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    network: Any = AutoModelForMaskedLM.from_pretrained(written("llada"))
    network.resize_token_embeddings(97, pad_to_multiple_of=64)
    assert network.config.embedding_size == 128
    network.resize_token_embeddings()
    network.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert (stated["vocab_size"], stated["embedding_size"]) == (128, 128)
    assert dlm.load(tmp_path).spec.vocab_size == 128
