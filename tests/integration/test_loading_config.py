"""Names of checkpoints, and configurations written in other ways than the released ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dlm
from dlm.models.model import Model


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint folder with other configuration values; None removes a key."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


@pytest.mark.parametrize("name", ["a/b/c", "nope/", "x.git", ".hid/den", "owner/a model", "file"])
def test_what_is_no_id_either(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    hint = ", which is a file: give" if name == "file" else ""
    with pytest.raises(FileNotFoundError, match=f"no model folder at '{name}'{hint}"):
        dlm.load(name)


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"llada"'])
def test_a_configuration_that_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read config.json of .*: it must hold an object"):
        dlm.load(tmp_path)


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("stated", "dtype"),
    [
        ("torch.bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("auto", torch.float32),  # what the weights are
    ],
)
def test_ways_to_write_a_dtype(
    key: str, stated: str, dtype: torch.dtype, direct: bool, golden_folder: Path, tmp_path: Path
) -> None:
    folder = edited(golden_folder, tmp_path / "model", dtype=None, torch_dtype=None)
    folder = edited(folder, tmp_path / "stated", **{key: stated})
    assert dlm.load(folder, direct=direct).network.dtype == dtype


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
def test_a_width_that_follows_from_a_ratio(
    direct: bool, golden_folder: Path, golden: Model, tmp_path: Path
) -> None:
    """As the official code makes it of a mlp_hidden_size that is null; the added width is 0."""
    config = json.loads((golden_folder / "config.json").read_text())
    stated = config | {"mlp_hidden_size": None, "mlp_ratio": 3}
    added = 3 * config["d_model"] - config["mlp_hidden_size"]
    assert added > 0
    weights = load_file(golden_folder / "model.safetensors")
    for name in weights:
        if re.search(r"\.(ff_proj|up_proj)\.", name):
            weights[name] = torch.nn.functional.pad(weights[name], (0, 0, 0, added))
        elif re.search(r"\d\.ff_out\.", name):
            weights[name] = torch.nn.functional.pad(weights[name], (0, added))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(stated))
    model = dlm.load(tmp_path, direct=direct, dtype="float32")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model.raw_logits(ids), golden.raw_logits(ids), atol=1e-4, rtol=0)
