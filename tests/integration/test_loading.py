"""Real checkpoints: released layout, no remote code, clear refusals."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dlm
from dlm.models.model import Model

LOGITS = Path(__file__).parent.parent / "golden" / "logits.json"


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint folder with other configuration values; None removes a key."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_official_logits(golden_folder: Path, attention: str) -> None:
    model = dlm.load(golden_folder, dtype="float32", attn_implementation=attention)
    cases = json.loads(LOGITS.read_text())
    assert len(cases) == 3
    for case in cases:
        ids = torch.tensor(case["input_ids"])
        found = model.raw_logits(ids if ids.ndim == 2 else ids[None])
        expected = torch.tensor(case["logits"]).reshape(found.shape)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and transformers at odds
def test_official_logits_flex_attention(golden_folder: Path) -> None:
    model = dlm.load(golden_folder, dtype="float32", attn_implementation="flex_attention")
    case = json.loads(LOGITS.read_text())[0]
    ids = torch.tensor(case["input_ids"])
    found = model.raw_logits(ids if ids.ndim == 2 else ids[None])
    expected = torch.tensor(case["logits"]).reshape(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_padding_does_not_change_a_row(golden: Model) -> None:
    short, width = torch.tensor([[5, 6, 7, 511]]), 9
    padded = torch.cat((short, torch.full((1, width - 4), 3)), 1)
    valid = torch.arange(width)[None] < 4
    columns = torch.arange(width)[None]
    with torch.no_grad():
        alone = golden.logits(golden.hidden(short, columns[:, :4], None))
        among = golden.logits(golden.hidden(padded, columns, valid))[:, :4]
        open_ = golden.logits(golden.hidden(padded, columns, None))[:, :4]
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=0)
    assert (open_ - alone).abs().max() > 1e-3, "the mask must have made the difference"


def test_attention_looks_both_ways(golden: Model) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    later = torch.tensor([[5, 6, 7, 9]])
    assert (golden.raw_logits(ids)[0, 0] - golden.raw_logits(later)[0, 0]).abs().max() > 1e-4


def test_rotary_frequencies_survive_loading(golden: Model) -> None:
    frequencies = golden.network.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert frequencies[0] == 1.0
    assert (frequencies.diff() < 0).all()


def test_bfloat16_keeps_rotary_frequencies_in_float32(golden_folder: Path) -> None:
    model = dlm.load(golden_folder, dtype="bfloat16")
    assert model.raw_logits(torch.tensor([[1, 2]])).dtype == torch.bfloat16
    assert model.network.model.rotary_emb.inv_freq.dtype == torch.float32


def test_float64_by_its_name(golden_folder: Path) -> None:
    model = dlm.load(golden_folder, dtype="float64")
    assert model.raw_logits(torch.tensor([[1, 2]])).dtype == torch.float64
    assert dlm.generate(model, [[1, 2]], gen_length=4).forwards == [4]


def test_8b_parameter_count() -> None:
    from transformers import AutoModelForMaskedLM

    from dlm.models.configs import LladaConfig

    with torch.device("meta"):
        network = AutoModelForMaskedLM.from_config(LladaConfig())
    assert sum(p.numel() for p in network.parameters()) == 8_015_581_184


def test_save_keeps_the_released_names(golden_folder: Path, golden: Model, tmp_path: Path) -> None:
    golden.network.save_pretrained(tmp_path)
    before = load_file(golden_folder / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["LLaDAModelLM"]
    assert "auto_map" not in saved
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(dlm.load(tmp_path).raw_logits(ids), golden.raw_logits(ids))


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"])
@pytest.mark.parametrize("trust", [False, True])
def test_auto_classes_run_no_remote_code(
    golden_folder: Path, tmp_path: Path, auto: str, trust: bool
) -> None:
    import transformers

    folder = edited(golden_folder, tmp_path / "bait")
    for name in ("configuration_llada", "modeling_llada"):
        (folder / f"{name}.py").write_text("raise SystemExit('remote code ran')")
    network = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=trust)
    assert type(network).__module__ == "dlm.models.llada"


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "order",
    [
        "import dlm; from transformers import AutoModelForMaskedLM",
        "from transformers import AutoModelForMaskedLM; import dlm",
        "import transformers; import dlm; from transformers import AutoModelForMaskedLM",
        "from dlm.models.llada import LLaDAModelLM; from transformers import AutoModelForMaskedLM",
    ],
)
def test_registration_whatever_the_import_order(order: str, golden_folder: Path) -> None:
    code = f"{order}; print(type(AutoModelForMaskedLM.from_pretrained({str(golden_folder)!r})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "dlm.models.llada.LLaDAModelLM" in out.stdout


def test_import_is_light() -> None:
    code = (
        "import sys, dlm; print([m for m in ('torch', 'transformers') if m in sys.modules]);"
        "dlm.decoders.DECODERS; dlm.types.Decoder; dlm.eval; print('transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["[]", "False"]


@pytest.mark.slow
def test_models_and_their_facts_are_named_by_their_package() -> None:
    code = (
        "import sys, dlm.models; print('torch' in sys.modules, dir(dlm.models));"
        "from dlm.models import Model, ModelSpec; import dlm;"
        "print(Model is dlm.Model, isinstance(dlm.load().spec, ModelSpec))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["False ['Model', 'ModelSpec']", "True True"]


def test_sharded_checkpoint(golden: Model, tmp_path: Path) -> None:
    golden.network.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(dlm.load(tmp_path).raw_logits(ids), golden.raw_logits(ids))


def test_device_map(golden_folder: Path, golden: Model) -> None:
    model = dlm.load(golden_folder, device_map="auto", dtype="float32")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.raw_logits(ids), golden.raw_logits(ids))


def test_facts_of_the_released_checkpoint() -> None:
    from dlm.models.configs import LladaConfig
    from dlm.models.facts import resolve

    spec = resolve(LladaConfig(), [126081], None)
    assert spec.mask_id == 126336
    assert spec.stop_ids == (126081, 126348)
    assert set(spec.banned) == {126336, *range(126349, 126464)}
    assert spec.max_length == 4096


def test_mask_id_is_cross_checked(golden_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(dlm.__file__).parent / "assets" / "tiny")
    folder = edited(golden_folder, tmp_path / "other")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="mask_token_id 511 and the tokenizer's 5 disagree"):
        dlm.load(folder)
    assert dlm.load(folder, mask_id=7).spec.mask_id == 7


def corrupt(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def rename(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.blocks.0.q_norm.weight"] = tensors.pop(
        "model.transformer.blocks.0.q_proj.weight"
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        torch.save({k: file.get_tensor(k) for k in file.keys()}, folder / "pytorch_model.bin")  # noqa: SIM118
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (corrupt, {}, "cannot load the weights"),
        (rename, {}, "do not fit its configuration: .*q_"),
        (pickled, {}, "pytorch_model.bin is a pickle"),
        (None, {"d_model": 32}, "cannot load the weights|do not fit"),
        (None, {"d_model": 65}, "n_heads must divide d_model"),
        (None, {"model_type": "bert"}, "a bert needs its tokenizer"),
        (None, {"head_dim": 32}, "head_dim must be 16 in this LLaDA, got 32"),
        (None, {"qk_norm": True}, "qk_norm must be False in this LLaDA, got True"),
        (None, {"model_type": "gpt2"}, "not a masked-diffusion family"),
        (None, {"model_type": "unheard-of"}, "not a masked-diffusion family"),
        (None, {"architectures": ["Other"]}, r"architectures\[0\] .* got 'Other'"),
        (None, {"clip_qkv": 0.1}, "clip_qkv must be None"),
        (None, {"eos_token_id": 9999}, "stop ids must be ids below"),
        (None, {"eos_token_id": 511}, "other than the mask's 511"),
        (None, {"architectures": ["LLaDAMoEModelLM"]}, "in this LLaDA-MoE, got"),
        (None, {"alibi": True}, "alibi must be False"),
        (None, {"mask_token_id": 512}, "mask_id must be an id below the vocabulary size 512"),
    ],
)
def test_foreign_and_corrupt_checkpoints(
    golden_folder: Path, tmp_path: Path, damage: Any, changes: dict[str, Any], message: str
) -> None:
    folder = edited(golden_folder, tmp_path / "bad", **changes)
    if damage is not None:
        damage(folder)
    with pytest.raises(ValueError, match=message):
        dlm.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float23"}, "unknown dtype 'float23'. Did you mean 'float32'"),
        ({"dtype": torch.int64}, "dtype must be torch's of float32, .* got torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, "got torch.float8_e4m3fn"),
        ({"attn_implementation": "spda"}, "Did you mean 'sdpa'"),
        ({"device": "gpu0"}, "device must be a torch device, got 'gpu0'"),
        ({"device": "hpu"}, "device must be one that this machine has, got 'hpu'"),
        ({"device": "xla"}, "device must be one that this machine has, got 'xla'"),
        ({"device": "cpu", "device_map": "auto"}, "device or device_map, not both"),
        ({"direct": "yes"}, "direct must be True or False, got 'yes'"),
        ({"direct": True, "device_map": "auto"}, "excludes device_map and"),
        ({"quantization_config": {"load_in_8bit": True}}, "such as BitsAndBytesConfig, got {'load"),
        ({"direct": True, "quantization_config": 8}, "excludes device_map and"),
        ({"family": "lada"}, "unknown family 'lada'. Did you mean 'llada'"),
        ({"family": "dream"}, "family 'dream' has model_type 'Dream'"),
        ({"block_size": 0}, "block_size must be an int >= 1, got 0"),
        ({"stop_ids": 5}, "stop_ids must be a sequence of ints, got 5"),
        ({"stop_ids": "5"}, "stop_ids must be a sequence of ints, got '5'"),
        ({"device": "meta"}, "device must be one that holds weights, got 'meta'"),
    ],
)
def test_bad_load_options(golden_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.load(golden_folder, **options)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here"
)
def test_quantization_is_handed_to_transformers(golden_folder: Path) -> None:
    from transformers import BitsAndBytesConfig

    with pytest.raises(ValueError, match=r"cannot load the weights of .*: Using `bitsandbytes`"):
        dlm.load(golden_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_absent(golden_folder: Path) -> None:
    with pytest.raises(ValueError, match="'cuda' was asked for, but torch sees no CUDA device"):
        dlm.load(golden_folder, device="cuda")


def test_no_such_folder() -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder at './nowhere'"):
        dlm.load("./nowhere")


def test_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the configuration of .*json is missing"):
        dlm.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot read the configuration of .*json says nothing"):
        dlm.load(tmp_path)


def test_rows_beyond_the_vocabulary_are_never_sampled(golden_folder: Path, tmp_path: Path) -> None:
    folder = edited(golden_folder, tmp_path / "padded", vocab_size=500, embedding_size=512)
    model = dlm.load(folder)
    assert model.spec.unused == (500, 512)
    out = dlm.generate(model, [[1]], gen_length=64, temperature=50.0, stop_at_eos=False)
    assert max(out.tokens[0]) < 500


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_corrupt_side_files_are_refused(golden_folder: Path, tmp_path: Path, name: str) -> None:
    folder = edited(golden_folder, tmp_path / "bad")
    (folder / name).write_text('{"eos_token_id": 5')
    with pytest.raises(ValueError, match=f"cannot read .*{name.split('_')[0].split('.')[0]}"):
        dlm.load(folder)


def test_stop_ids_of_both_configurations(golden_folder: Path, tmp_path: Path) -> None:
    folder = edited(golden_folder, tmp_path / "two")
    (folder / "generation_config.json").write_text('{"eos_token_id": [508, 50]}')
    assert dlm.load(folder).spec.stop_ids == (508, 50)


def test_foreign_code_is_never_offered(golden_folder: Path, tmp_path: Path) -> None:
    folder = edited(golden_folder, tmp_path / "foreign", model_type="unheard-of")
    with pytest.raises(ValueError, match="unheard-of") as caught:
        dlm.load(folder)
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("mask_id", [7.5, True, "7", 512])
def test_bad_mask_ids(golden_folder: Path, mask_id: Any) -> None:
    with pytest.raises(ValueError, match="mask_id must be an"):
        dlm.load(golden_folder, mask_id=mask_id)


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1]), torch.tensor([[1.0]]), torch.tensor([[600]]), torch.ones(1, 257).long(),
        [[1, 2]], None,
    ],
)  # fmt: skip
def test_bad_raw_inputs(golden: Model, ids: Any) -> None:
    with pytest.raises(ValueError, match="input_ids must"):
        golden.raw_logits(ids)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and transformers at odds
def test_flex_attention_takes_rows_of_any_length(golden: Model, golden_folder: Path) -> None:
    """On a CPU, where queries are counted in fours for other backends."""
    model = dlm.load(golden_folder, dtype="float32", attn_implementation="flex_attention")
    rows = [[5, 6, 7, 8, 9], [12], [13, 14, 15]]
    expected = dlm.generate(golden, rows, gen_length=9).tokens
    assert dlm.generate(model, rows, gen_length=9).tokens == expected
