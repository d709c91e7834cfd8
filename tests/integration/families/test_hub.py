"""A checkpoint by its Hugging Face id, as far as that goes without a network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm.cli import lists
from dlm.models.catalog import CHECKPOINTS

REVISION = "0" * 40
LOAD = """
import dlm, torch
ids = torch.tensor([[5, 6, 7, 8, 9]])
found = [dlm.load("someone/SDAR-tiny-b2", direct=direct) for direct in (False, True)]
print([model.spec.block_size for model in found], found[0].tokenizer)
print(torch.allclose(found[0].raw_logits(ids), found[1].raw_logits(ids), atol=1e-5))
"""


def test_an_id_is_read_from_the_cache(written: Callable[[str], Path], tmp_path: Path) -> None:
    """And its name tells the block size."""
    home = tmp_path / "hub" / "models--someone--SDAR-tiny-b2"
    shutil.copytree(written("sdar"), home / "snapshots" / REVISION)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    offline = {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    out = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, env=os.environ | offline
    )
    assert out.stdout.split("\n")[:2] == ["[2, 2] None", "True"], out.stderr


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
    assert asking == {"fredzzp/open-dcoder-0.5B"}
    assert "family='open-dcoder'" in rows["fredzzp/open-dcoder-0.5B"]["note"]
