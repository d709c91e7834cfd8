"""A checkpoint by its Hugging Face id, as far as that goes without a network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dlm
from dlm.cli import lists
from dlm.models.catalog import CHECKPOINTS

REVISION = "0" * 40
LOAD = """
import dlm, torch
ids = torch.tensor([[5, 6, 7, 8, 9]])
found = [dlm.load("someone/SDAR-4B-Chat-b8", direct=direct) for direct in (False, True)]
print([model.spec.block_size for model in found], found[0].tokenizer)
print(torch.allclose(found[0].raw_logits(ids), found[1].raw_logits(ids), atol=1e-4))
"""


@pytest.mark.slow
def test_an_id_is_read_from_the_cache(written: Callable[[str], Path], tmp_path: Path) -> None:
    """And its name tells the block size."""
    home = tmp_path / "hub" / "models--someone--SDAR-4B-Chat-b8"
    shutil.copytree(written("sdar"), home / "snapshots" / REVISION)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    out = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, env=offline(tmp_path)
    )
    assert out.stdout.split("\n")[:2] == ["[8, 8] None", "True"], out.stderr


ABSENT = """
import dlm
for name in ("nobody", "no/body"):
    for place in ({"name_or_path": name}, {"adapter": name}):
        try:
            dlm.load(**place)
        except ValueError as error:
            print(error)
from dlm.cli.frequencies import read_tokenizer
try:
    read_tokenizer("no/body")
except ValueError as error:
    print(error)
"""


def offline(home: Path) -> dict[str, str]:
    places = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    return os.environ | places | {"HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_an_id_without_an_owner(written: Callable[[str], Path], tmp_path: Path) -> None:
    home = tmp_path / "hub" / "models--SDAR-4B-Chat-b8"
    shutil.copytree(written("sdar"), home / "snapshots" / REVISION)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    assert dlm.load(home / "snapshots" / REVISION).spec.block_size == 8
    out = subprocess.run(
        [sys.executable, "-c", LOAD.replace("someone/", "")],
        capture_output=True,
        text=True,
        env=offline(tmp_path),
    )
    assert out.stdout.split("\n")[:2] == ["[8, 8] None", "True"], out.stderr


@pytest.mark.slow
def test_what_is_neither_a_folder_nor_on_the_hub(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", ABSENT], capture_output=True, text=True, env=offline(tmp_path)
    )
    told = [line for line in out.stdout.split("\n") if "there is no such folder" in line]
    assert len(told) == 5, out.stdout + out.stderr
    assert told.pop() == told[2]  # so says what needs a tokenizer only
    assert all("looked for on the Hugging Face Hub" in line for line in told)
    for line, name in zip(told[::2], ("nobody", "no/body"), strict=True):
        assert line.startswith(f"cannot read the configuration of {name!r} (")
        assert "couldn't connect" in line
    for line, name in zip(told[1::2], ("nobody", "no/body"), strict=True):
        assert line.startswith(f"no adapter_config.json in the adapter {name!r} (")


def test_the_list_has_the_facts_of_each_family(capsys: pytest.CaptureFixture[str]) -> None:
    lists.models(json=True)
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(rows) == len(CHECKPOINTS) + 1
    chat = rows["JetLM/SDAR-8B-Chat-b32"]
    assert (chat["model_type"], chat["architecture"]) == ("sdar", "SDARForCausalLM")
    assert (chat["shift"], chat["block_size"]) == (False, 32)
    assert rows["Dream-org/Dream-v0-Instruct-7B"]["shift"] is True
    assert rows["kuleshov-group/bd3lm-owt-block_size16"]["block_size"] == 16
    asking = {name for name, row in rows.items() if row["asks_for_family"]}
    assert asking == {"fredzzp/open-dcoder-0.5B", "diffusionfamily/diffullama"}
    assert "family='diffullama'" in rows["diffusionfamily/diffullama"]["note"]
    assert rows["ByteDance-Seed/Stable-DiffCoder-8B-Base"]["block_size"] == 4
    assert "family='open-dcoder'" in rows["fredzzp/open-dcoder-0.5B"]["note"]
