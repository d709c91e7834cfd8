"""Nothing that lies in a checkpoint is run, whatever it is and whoever asks."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import dlm

CODE = """from pathlib import Path
Path({sentinel!r}).write_text("ran")
class Config: pass
class Model: pass
class Tokenizer: pass
"""
AUTOS = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.sentinel, "ran")


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


@pytest.fixture
def bait(tmp_path: Path, folder: Path, sentinel: Path) -> Path:
    """The family's checkpoint with code in every place that a file can point to."""
    target = tmp_path / "bait"
    shutil.copytree(folder, target)
    (target / "bait.py").write_text(CODE.format(sentinel=str(sentinel)))
    (target / "custom_generate").mkdir()
    (target / "custom_generate" / "generate.py").write_text(CODE.format(sentinel=str(sentinel)))
    config = json.loads((target / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "bait.Config",
        "AutoTokenizer": ["bait.Tokenizer", "bait.Tokenizer"],
        **dict.fromkeys(AUTOS, "bait.Model"),
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("direct", [False, True])
def test_loading_runs_nothing(
    bait: Path, sentinel: Path, asked: dict[str, Any], direct: bool
) -> None:
    dlm.load(bait, direct=direct, **asked)
    assert not sentinel.exists()


@pytest.mark.parametrize("auto", AUTOS)
@pytest.mark.parametrize("trust", [False, True])
def test_auto_classes_run_nothing_even_if_trusted(
    name: str, bait: Path, sentinel: Path, auto: str, trust: bool
) -> None:
    if name == "open-dcoder":
        pytest.skip("its files are those of a Qwen2, which transformers keeps")
    network = getattr(transformers, auto).from_pretrained(bait, trust_remote_code=trust)
    assert not sentinel.exists()
    assert type(network).__module__.startswith("dlm.models.")
    assert "auto_map" not in network.config.to_dict()


def test_the_bait_is_taken_where_a_model_is_unknown(
    tmp_path: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above can fail."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "bait.py").write_text(CODE.format(sentinel=str(sentinel)))
    files = {"model_type": "unheard-of", "auto_map": {"AutoConfig": "bait.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(files))
    with pytest.raises(ValueError, match="unheard-of"):
        dlm.load(tmp_path)
    assert not sentinel.exists()
    with pytest.raises(AttributeError):
        transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert sentinel.exists()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_not_opened(
    bait: Path, sentinel: Path, asked: dict[str, Any], file: str, direct: bool
) -> None:
    (bait / "model.safetensors").unlink()
    (bait / file).write_bytes(pickle.dumps(Bomb(sentinel)))
    with pytest.raises(ValueError, match=rf"{file} is a pickle.*Convert it to safetensors"):
        dlm.load(bait, direct=direct, **asked)
    assert not sentinel.exists()
    with (bait / file).open("rb") as stream:
        pickle.load(stream)
    assert sentinel.exists(), "the pickle must have been able to run"


def test_a_pickle_beside_safetensors_is_not_opened(
    bait: Path, sentinel: Path, asked: dict[str, Any]
) -> None:
    (bait / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(sentinel)))
    dlm.load(bait, **asked)
    assert not sentinel.exists()


def test_a_tokenizer_of_foreign_code_is_refused(
    written: Callable[[str], Path], tmp_path: Path, sentinel: Path
) -> None:
    target = tmp_path / "bait"
    shutil.copytree(written("llada"), target)
    (target / "bait.py").write_text(CODE.format(sentinel=str(sentinel)))
    files = {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["bait.Tokenizer", None]}}
    (target / "tokenizer_config.json").write_text(json.dumps(files))
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        dlm.load(target)
    assert not sentinel.exists()


@torch.no_grad()
def test_an_autoregressive_network_of_the_same_files_is_left_alone(
    written: Callable[[str], Path],
) -> None:
    """Open-dCoder's files load causally in transformers, and both ways here when asked for."""
    folder = written("open-dcoder")
    causal = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(causal, transformers.Qwen2ForCausalLM)
    with pytest.raises(ValueError, match="pass family='open-dcoder'"):
        dlm.load(folder)
    model = dlm.load(folder, family="open-dcoder")
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    assert torch.equal(causal(ids).logits[0, :3], causal(changed).logits[0, :3])
    assert not torch.equal(model.raw_logits(ids)[0, :3], model.raw_logits(changed)[0, :3])
    assert load_file(folder / "model.safetensors").keys() == {
        key for key in causal.state_dict() if key != "lm_head.weight"
    }
