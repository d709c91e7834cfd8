"""Weights of another shape than the configuration says: each is named with both shapes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dlm
from dlm.models.facts import read_config
from dlm.models.weights import SINGLE, mismatched

HOW: dict[str, dict[str, Any]] = {
    "transformers": {},
    "direct": {"direct": True},
    "w8a8": {"quantization_config": dlm.W8A8Config()},
}
CASES = {
    "llada": r"blocks\.1\.q_proj",
    "llada2": r"layers\.1\.mlp\.experts\.3\.down_proj",
    "sdar": r"layers\.0\.input_layernorm",
    "encoder": r"layer\.0\.attention\.self\.query\.weight",
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", CASES)
def test_it_is_named(family: str, how: str, written: Callable[[str], Path], tmp_path: Path) -> None:
    """By its released name, also one of experts, which are joined before they are compared."""
    if family == "encoder" and how == "direct":
        pytest.skip("transformers alone reads these")
    shutil.copytree(written(family), tmp_path / "model")
    weights = load_file(tmp_path / "model" / SINGLE)
    name = next(name for name in weights if re.search(CASES[family], name))
    wanted, cut = weights[name].shape, weights[name][:-2].contiguous()
    save_file(weights | {name: cut}, tmp_path / "model" / SINGLE, metadata={"format": "pt"})
    # What rounds weights names them as they are called here, where transformers leaves it to that.
    called = r"\S+" if how == "w8a8" else f"do not fit its configuration: mismatched: {name}"
    said = re.escape(f" must be {[*wanted]}, got {[*cut.shape]} in the files")
    end = "$" if how == "direct" else ""  # as missing it would be told twice
    with pytest.raises(ValueError, match=called + said + end):
        dlm.load(tmp_path / "model", **HOW[how])


def test_an_expert_that_is_missing_beside_it_is_told(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Experts are one weight here, of which the part of another shape is not the whole."""
    shutil.copytree(written("sdar-moe"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / SINGLE)
    name = "model.layers.0.mlp.experts.{}.down_proj.weight"
    del weights[name.format(1)]
    weights[name.format(2)] = weights[name.format(2)][:-2].contiguous()
    save_file(weights, tmp_path / "model" / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"mismatched: .*\.2\.down_proj.*; missing: .*experts"):
        dlm.load(tmp_path / "model", direct=True)


def test_another_error_is_told_as_it_is(
    golden_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm.models.llada import LLaDAModelLM

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("memory ran out")

    monkeypatch.setattr(LLaDAModelLM, "from_pretrained", fails)
    with pytest.raises(ValueError, match=r"cannot load the weights .* memory ran out"):
        dlm.load(golden_folder)


def test_packed_bytes_are_of_no_shape_here(golden_folder: Path, tmp_path: Path) -> None:
    """Where several numbers lie in one, as others quantize."""
    weights = load_file(golden_folder / SINGLE)
    packed = {n: torch.zeros(w.numel() // 2, 1, dtype=torch.uint8) for n, w in weights.items()}
    (tmp_path / "config.json").write_bytes((golden_folder / "config.json").read_bytes())
    save_file(packed, tmp_path / SINGLE, metadata={"format": "pt"})
    config, family = read_config(str(tmp_path))
    assert mismatched(str(tmp_path), config, family, {}) == []
