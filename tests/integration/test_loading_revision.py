"""A revision of a checkpoint on the Hub: all of its files, and none of another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.models.loading import silence
from dlm.models.model import Model

NAME = "someone/model"
IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture
def other(folder: str, tmp_path: Path) -> Path:
    """Other weights than the small checkpoint's, in files of another kind, and other facts."""
    place = tmp_path / "other"
    with silence():
        network = dlm.load(folder).network
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    network.bfloat16().save_pretrained(place, max_shard_size="20KB")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [77]}))
    return place


@pytest.fixture(autouse=True)
def hub(folder: str, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the Hub, and no Hub: the first on the branch main, the other under a tag."""
    cache = tmp_path / "hub"
    place = cache / "models--someone--model"
    (place / "refs").mkdir(parents=True)
    for name, digit, files in (("main", "a", Path(folder)), ("v2", "b", other)):
        (place / "refs" / name).write_text(digit * 40)
        shutil.copytree(files, place / "snapshots" / (digit * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def same(found: Model, expected: Model) -> None:
    assert found.tokenizer is not None
    assert expected.tokenizer is not None
    assert found.spec == expected.spec
    assert found.identity() == expected.identity()
    assert found.tokenizer.chat_template == expected.tokenizer.chat_template
    assert found.network.dtype == expected.network.dtype
    assert torch.equal(found.raw_logits(IDS), expected.raw_logits(IDS))
    again = dlm.as_model(found.network)
    assert again.tokenizer is not None
    assert again.spec == expected.spec
    assert again.identity() == expected.identity()
    assert again.tokenizer.chat_template == expected.tokenizer.chat_template


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("revision", [None, "main", "v2", "b" * 40])
def test_a_revision_is_read_whole(
    revision: str | None, direct: bool, folder: str, other: Path
) -> None:
    expected = dlm.load(folder if revision in (None, "main") else other)
    same(dlm.load(NAME, revision=revision, direct=direct), expected)


def test_a_command_takes_a_revision(other: Path) -> None:
    words = ["generate", "ab", "--gen-length", "8", "--json", "--model"]
    asked = CliRunner().invoke(app, [*words, NAME, "--revision", "v2"])
    plain = CliRunner().invoke(app, [*words, str(other)])
    main = CliRunner().invoke(app, [*words, NAME])
    assert asked.exit_code == plain.exit_code == main.exit_code == 0, asked.output
    found, expected, another = (json.loads(each.stdout) for each in (asked, plain, main))
    assert found["tokens"] == expected["tokens"] != another["tokens"]


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("v3", r"cannot read the configuration of 'someone/model'"),
        ("", "revision must name a branch, a tag or a commit, got ''"),
        (2, "revision must name a branch, a tag or a commit, got 2"),
    ],
)
def test_what_is_no_revision(revision: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.load(NAME, revision=revision)


def test_a_folder_has_no_revision(folder: str) -> None:
    for place in (folder, None):
        with pytest.raises(ValueError, match=r"revision goes with a Hugging Face id, and .* 'v2'"):
            dlm.load(place, revision="v2")
