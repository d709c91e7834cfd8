"""Nothing that lies in a checkpoint is run, whatever it is and whoever asks."""

import io
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
BORROWED = {"diffullama", "open-dcoder", "stable-diffcoder"}
"""Families whose files say that they are a Qwen2's or a Llama's."""
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


@pytest.mark.one_in(2)
@pytest.mark.parametrize("auto", AUTOS)
@pytest.mark.parametrize("trust", [False, True])
def test_auto_classes_run_nothing_even_if_trusted(
    name: str, bait: Path, sentinel: Path, auto: str, trust: bool
) -> None:
    if name in BORROWED:
        pytest.skip("its files are those of another network, which transformers keeps")
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


PICKLED = ("AutoModel", "AutoModelForCausalLM")


@pytest.mark.parametrize("auto", PICKLED)
def test_auto_classes_open_no_pickle(name: str, bait: Path, sentinel: Path, auto: str) -> None:
    if name in BORROWED:
        pytest.skip("its files are those of another network, which transformers keeps")
    (bait / "model.safetensors").unlink()
    (bait / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(sentinel)))
    inner = {"subfolder": bait.name}
    for folder, options in ((bait, {}), (bait, {"use_safetensors": True}), (bait.parent, inner)):
        with pytest.raises(
            ValueError, match=r"pytorch_model\.bin is a pickle.*Convert it to safet"
        ):
            getattr(transformers, auto).from_pretrained(folder, **options)
    assert not sentinel.exists()


def test_pickled_weights_are_read_when_asked_for(name: str, folder: Path, tmp_path: Path) -> None:
    """transformers' own switch, whose reader takes tensors alone."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if not type(config).__module__.startswith("dlm."):
        assert name in BORROWED
        pytest.skip("its files are those of another network, which transformers keeps")
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    read = transformers.AutoModel.from_pretrained(tmp_path, use_safetensors=False)
    expected = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(w, expected[key]) for key, w in read.state_dict().items())


@pytest.fixture
def baited_tokenizer(
    written: Callable[[str], Path],
    tmp_path: Path,
    sentinel: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A LLaDA with a tokenizer that is code beside it, which nobody says yes to."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    target = tmp_path / "bait"
    shutil.copytree(written("llada"), target)
    (target / "bait.py").write_text(CODE.format(sentinel=str(sentinel)))
    files = {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["bait.Tokenizer", None]}}
    (target / "tokenizer_config.json").write_text(json.dumps(files))
    return target


def read_by_load(folder: Path) -> None:
    dlm.load(folder)


def read_by_auto(folder: Path, **options: Any) -> None:
    transformers.AutoTokenizer.from_pretrained(folder, **options)


def read_by_pipeline(folder: Path, **options: Any) -> None:
    transformers.pipeline("text-generation", model=str(folder), **options)


def read_by_generate(folder: Path) -> None:
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    network.generate(torch.tensor([[3, 4]]), max_new_tokens=2)


@pytest.mark.parametrize("read", [read_by_load, read_by_auto, read_by_pipeline, read_by_generate])
def test_a_tokenizer_of_foreign_code_is_refused(
    baited_tokenizer: Path, sentinel: Path, read: Callable[..., None]
) -> None:
    with pytest.raises(ValueError, match=r"cannot read the tokenizer|custom code"):
        read(baited_tokenizer)
    assert not sentinel.exists()


@pytest.mark.parametrize("read", [read_by_auto, read_by_pipeline])
def test_a_tokenizer_that_is_trusted_runs(
    baited_tokenizer: Path, sentinel: Path, read: Callable[..., None]
) -> None:
    """Which is what docs/huggingface.md says, and why the test above can fail."""
    with pytest.raises(AttributeError):
        read(baited_tokenizer, trust_remote_code=True)
    assert sentinel.exists()


@pytest.mark.parametrize("read", [read_by_auto, read_by_pipeline])
def test_a_tokenizer_that_is_registered_here_runs_nothing_even_if_trusted(
    baited_tokenizer: Path, sentinel: Path, read: Callable[..., None]
) -> None:
    path = baited_tokenizer / "tokenizer_config.json"
    path.write_text(path.read_text().replace("Unheard", "DreamTokenizer"))
    (baited_tokenizer / "vocab.json").write_text('{"a": 0}')
    (baited_tokenizer / "merges.txt").write_text("")
    read(baited_tokenizer, trust_remote_code=True)
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
