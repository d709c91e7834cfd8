"""`dlm.W8A8Config`: loaded, saved, merged, refused, and decoded with, in every family."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.distill.certainty_recipe import Recipe, adapter_config
from dlm.huggingface.quantization import quantize
from dlm.kernels import int8
from dlm.models.families import FAMILIES
from dlm.models.identity import configuration, fingerprint
from dlm.models.int8 import layers_of
from dlm.models.model import Model
from dlm.models.weights import SINGLE
from tests.integration.w8a8_networks import IDS, linear, load, rounded, same, write_adapter

ROWS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]  # below 5 lie an encoder's special tokens


def decode(model: Model, rows: list[list[int]], keys: list[int]) -> list[list[int]]:
    cache = "prefix" if model.spec.caches else "none"
    options: dict[str, Any] = {"gen_length": 7, "block_length": 4, "temperature": 0.7}
    out = dlm.generate(model, rows, row_keys=keys, cache=cache, stop_at_eos=False, **options)
    return out.tokens


@pytest.mark.parametrize("family", [*FAMILIES, "encoder"])
def test_every_family_decodes(
    family: str,
    written: Callable[[str], Path],
    asks: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    asked = asks(family)
    plain = dlm.load(written(family), dtype="float32", **asked)
    model = load(written(family), **asked)
    # All linear layers are rounded but the projection to the vocabulary, which of MDLM is of a
    # class of its own.
    kinds = rounded(model.network)
    assert {name for name, kind in kinds.items() if kind == "Int8Linear"} | linear(model) == linear(
        plain
    )
    assert ("Int8Experts" in kinds.values()) == hasattr(model.network.config, "num_experts")
    assert len(linear(model)) == (0 if family in ("mdlm", "bd3lm") else 1)
    exact, made = plain.raw_logits(IDS), model.raw_logits(IDS)
    most = 0.2 if hasattr(model.network.config, "num_experts") else 0.05  # others may be chosen
    most *= 127 / int8.steps()
    assert 0 < (made - exact).abs().mean() < most * exact.std()
    together = decode(model, ROWS, [20, 21, 22])
    for row, key, tokens in zip(ROWS, (20, 21, 22), together, strict=True):
        assert decode(model, [row], [key]) == [tokens]
    # What is saved is what is loaded again, with nothing to say about it.
    model.network.save_pretrained(tmp_path / "saved")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(tmp_path / "saved")
    again = dlm.load(tmp_path / "saved", **asked)
    assert same(again, model)
    torch.testing.assert_close(again.raw_logits(IDS), made, rtol=0, atol=0.02)
    assert fingerprint(again.network) == fingerprint(model.network) != fingerprint(plain.network)
    assert configuration(again.network) == configuration(model.network)


def test_it_costs_a_byte_for_each_weight_in_memory_and_on_disk(
    golden_folder: Path, tmp_path: Path
) -> None:
    model = load(golden_folder)
    for layer in layers_of(model.network).values():
        assert layer.weight is None
        assert layer.integers("weight").dtype == torch.int8
    model.network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / SINGLE)
    scales = {name for name in stored if "scale_of_weight" in name}
    assert len(scales) == len(layers_of(model.network))
    for name in scales:
        assert stored[name].dtype == torch.float32
        assert stored[name.replace("scale_of_", "")].dtype == torch.int8


def test_it_is_rounded_alike_however_it_is_loaded(golden_folder: Path) -> None:
    model, later = load(golden_folder), dlm.load(golden_folder, dtype="float32")
    quantize(later.network, dlm.W8A8Config())
    assert same(later, model)
    network = AutoModelForMaskedLM.from_pretrained(
        golden_folder, dtype=torch.float32, quantization_config=dlm.W8A8Config()
    )
    assert same(replace(model, network=network), model)
    torch.testing.assert_close(network(IDS).logits, model.raw_logits(IDS), rtol=0, atol=0.02)


def test_layers_can_be_left_as_they_are(golden_folder: Path, model: Model) -> None:
    def left(names: list[str], folder: Path | str = golden_folder) -> set[str]:
        return linear(load(folder, quantization_config=dlm.W8A8Config(names)))

    assert left([]) == set()  # this projection is not tied
    for pattern in ("layers", "lm_hed", "q_project"):  # of which none stands for a layer
        with pytest.raises(
            ValueError, match=r"unknown pattern of modules_to_not_convert .*lm_head"
        ):
            left(["lm_head", pattern])
    assert left(["lm_head", "q_proj"]) == {"lm_head"} | {
        name for name in linear(dlm.load(golden_folder)) if name.endswith("q_proj")
    }
    # One that shares its weights with the embedding is never rounded.
    assert model.network.config.tie_word_embeddings
    tied = dlm.load(quantization_config=dlm.W8A8Config([]))
    assert linear(tied) == {"lm_head"}
    for names in ("lm_head", [""], [3], ("lm_head",)):
        with pytest.raises(ValueError, match="modules_to_not_convert must be a list of names"):
            dlm.W8A8Config(names)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quant_method must be 'w8a8', got 'w4a4'"):
        dlm.W8A8Config(quant_method="w4a4")
    with pytest.raises(ValueError, match="unknown option of W8A8Config 'bits'"):
        dlm.W8A8Config(bits=4)


def test_the_rest_has_the_dtype_that_is_asked_for(golden_folder: Path, tmp_path: Path) -> None:
    model = load(golden_folder)
    before = {name: each for name, each in model.network.state_dict().items() if "scale_of" in name}
    model.network.save_pretrained(tmp_path)
    for half in (
        load(golden_folder, dtype="bfloat16"),
        dlm.load(tmp_path, dtype="bfloat16"),
    ):
        assert half.network.dtype == torch.bfloat16
        assert half.raw_logits(IDS).dtype == torch.bfloat16
        assert {half.network.state_dict()[name].dtype for name in before} == {torch.float32}
    model.network.to(torch.bfloat16)
    after = model.network.state_dict()
    assert all(torch.equal(after[name], scale) for name, scale in before.items())
    assert model.raw_logits(IDS).dtype == torch.bfloat16


def test_weights_that_do_not_fit_are_named(golden_folder: Path, tmp_path: Path) -> None:
    weights = load_file(golden_folder / SINGLE)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    (tmp_path / "config.json").write_bytes((golden_folder / "config.json").read_bytes())

    def refused(changed: dict[str, Tensor]) -> str:
        save_file(changed, tmp_path / SINGLE, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="weight") as caught:
            load(tmp_path)
        return str(caught.value)

    lacking = refused({key: each for key, each in weights.items() if key != name})
    assert "q_proj.weight is not in the files" in lacking
    cut = refused(weights | {name: weights[name][:, :-2].contiguous()})
    assert "q_proj.weight must be [64, 64], got [64, 62] in the files" in cut
    cut = refused(weights | {name: weights[name][:-2].contiguous()})
    assert "q_proj.weight must be [64, 64], got [62, 64] in the files" in cut


def test_an_adapter_is_merged_first(golden_folder: Path, tmp_path: Path) -> None:
    plain = dlm.load(golden_folder, dtype="float32")
    write_adapter(plain, Recipe(rank=3), tmp_path / "adapter")
    merged = dlm.load(golden_folder, dtype="float32", adapter=tmp_path / "adapter", merge=True)
    quantize(merged.network, dlm.W8A8Config())
    model = load(golden_folder, adapter=tmp_path / "adapter", merge=True)
    assert same(model, merged)
    assert not same(model, load(golden_folder))
    with pytest.raises(ValueError, match="goes with an adapter that is merged: give merge=True"):
        load(golden_folder, adapter=tmp_path / "adapter")
    model.network.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="an adapter needs weights that are not quantized, and"):
        dlm.load(tmp_path / "saved", adapter=tmp_path / "adapter", merge=True)
    with pytest.raises(ValueError, match="an adapter needs weights that are not quantized, and"):
        adapter_config(model.network, Recipe())


def test_it_is_for_a_cpu_or_for_gpus(golden_folder: Path, tmp_path: Path) -> None:
    for places, named in (
        ("mps", "mps"),
        ({"": "cpu", "lm_head": 1}, "1, cpu"),
        ({"": 0, "lm_head": "disk"}, "0, disk"),
    ):
        with pytest.raises(ValueError, match=f"for a CPU or for GPUs, got weights on {named}$"):
            load(golden_folder, device_map=places)
    if not torch.cuda.is_available():
        for place in ("cuda", {"": "cuda:1"}, {"": torch.device("cuda")}):
            with pytest.raises(ValueError, match="torch sees no CUDA device here"):
                load(golden_folder, device_map=place)
        assert same(load(golden_folder, device_map="auto"), load(golden_folder))
    assert load(golden_folder, device="cpu").device.type == "cpu"
    model = load(golden_folder)
    model.network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"direct must be False for .*, whose weights are quant"):
        dlm.load(tmp_path, direct=True)
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1 for quantized weights"):
        dlm.load(tmp_path, tensor_parallel_size=2)


def test_a_command_takes_it(folder: str) -> None:
    args = ["generate", "x", "--model", folder, "--gen-length=6", "--no-stop-at-eos", "--json"]
    told = CliRunner().invoke(app, [*args, "--quantize=w8a8"])
    assert told.exit_code == 0, told.output
    model = load(folder, dtype="auto")
    options: dict[str, Any] = {"gen_length": 6, "stop_at_eos": False}
    assert json.loads(told.stdout)["tokens"] == dlm.generate(model, "x", **options).tokens[0]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "first",
    ["import dlm.models.int8", "import dlm.models.experts", "from dlm import W8A8Config"],
)
def test_transformers_knows_it_whatever_is_imported_first(
    first: str, golden_folder: Path, tmp_path: Path
) -> None:
    load(golden_folder).network.save_pretrained(tmp_path)
    code = (
        f"{first}; from transformers import AutoModelForMaskedLM\n"
        f"print(AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.count("Int8Linear") == 7


def test_what_is_written_is_not_rounded_again(
    golden_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    load(golden_folder).network.save_pretrained(tmp_path)
    assert same(load(tmp_path), load(golden_folder))
    assert not recwarn
    with pytest.raises(ValueError, match=r"quantization_config must be left away, or .*'q_proj'"):
        load(tmp_path, quantization_config=dlm.W8A8Config(["q_proj"]))
    state = load_file(tmp_path / SINGLE)
    name = next(name for name in state if name.endswith("q_proj.weight"))
    save_file(state | {name: state[name].float()}, tmp_path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"q_proj.weight must be int8 in the files, got torch.fl"):
        dlm.load(tmp_path)
    name = name.replace(".weight", ".scale_of_weight")
    save_file(state | {name: state[name].int()}, tmp_path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"scales of .*q_proj.weight must be float32 in the files"):
        dlm.load(tmp_path)


def test_training_does_not_begin_with_it(tmp_path: Path) -> None:
    model = dlm.load(quantization_config=dlm.W8A8Config())
    assert model.tokenizer is not None
    for part in (model.network, model.tokenizer):
        part.save_pretrained(tmp_path / "saved")
    args = ["train", "--task=sudoku=1", "--steps=1", f"--init={tmp_path / 'saved'}"]
    told = CliRunner().invoke(app, [*args, f"--out={tmp_path / 'out'}"], prog_name="dlm")
    assert told.exit_code == 2
    assert "training needs weights that are not quantized" in told.stderr
    assert not (tmp_path / "out").exists()


def test_a_command_names_what_it_does_not_go_with() -> None:
    args = ["generate", "x", "--quantize=w8a8", "--tensor-parallel-size=2"]
    told = CliRunner().invoke(app, args, prog_name="dlm")
    assert told.exit_code == 2
    assert "quantize 'w8a8' does not go with tensor_parallel_size 2" in told.stderr


def test_a_new_head_is_not_rounded(written: Callable[[str], Path]) -> None:
    """One that a checkpoint does not have, and transformers fills."""
    read = AutoModelForSequenceClassification.from_pretrained
    options: dict[str, Any] = {"num_labels": 3, "quantization_config": dlm.W8A8Config()}
    with pytest.raises(ValueError, match=r"pooler.dense.weight is not in the files: name it in"):
        read(written("encoder"), **options)
    options["quantization_config"] = dlm.W8A8Config(["classifier", "bert.pooler"])
    network = read(written("encoder"), **options)
    assert "bert.encoder.layer.0.attention.self.query" in rounded(network)
    assert network(IDS).logits.isfinite().all()


def test_an_encoder_takes_an_adapter(written: Callable[[str], Path], tmp_path: Path) -> None:
    plain = dlm.load(written("encoder"), dtype="float32")
    write_adapter(plain, Recipe(rank=2, layers=("query",)), tmp_path)
    options: dict[str, Any] = {"adapter": tmp_path, "merge": True}
    merged = dlm.load(written("encoder"), dtype="float32", **options)
    torch.testing.assert_close(merged.raw_logits(IDS), plain.raw_logits(IDS), atol=1e-4, rtol=1e-4)
    made = load(written("encoder"), **options)
    exact = plain.raw_logits(IDS)
    assert (made.raw_logits(IDS) - exact).abs().mean() < 0.1 * exact.std()
    assert rounded(made.network)
