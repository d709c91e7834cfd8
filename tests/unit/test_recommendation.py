"""How the authors of checkpoints decode them: `dlm.recommended`."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.models.catalog import CHECKPOINTS
from dlm.models.families import FAMILIES
from dlm.models.model import Model
from dlm.published.recommended import RECOMMENDED, Recommended
from dlm.settings import Settings

NAMES = [name for each in RECOMMENDED for name in each.checkpoints]
FAMILY = {each.name: FAMILIES[each.family] for each in CHECKPOINTS}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


def test_each_is_of_one_checkpoint_that_is_listed() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= set(FAMILY)
    assert all(each.source for each in RECOMMENDED)


@pytest.mark.parametrize("name", NAMES)
def test_the_options_are_those_of_generate(name: str) -> None:
    settings = Settings.of(dlm.recommended(name))
    assert isinstance(settings.decoder, str)  # which files and command lines can hold
    family = FAMILY[name]
    exact = family.reordered or family.named_block(name) or family.block_size
    assert settings.cache == ("prefix" if exact else "none")  # where it changes nothing


@pytest.mark.parametrize("each", RECOMMENDED, ids=lambda each: each.checkpoints[0])
def test_the_built_in_model_decodes_by_them(tiny: Model, each: Recommended) -> None:
    options = dlm.recommended(each.checkpoints[0]) | {"gen_length": 9}
    out = dlm.generate(tiny, [[1, 2, 3], [4]], **options)
    assert all(len(row) <= 9 for row in out.tokens)


@pytest.mark.parametrize(
    "name",
    [
        "GSAI-ML/LLaDA-8B-Instruct",
        "somebody/llada-8b-instruct",
        "/models/LLaDA-8B-Instruct/",
        Path("LLaDA-8B-Instruct"),
        "/cache/models--GSAI-ML--LLaDA-8B-Instruct/snapshots/08b83a6feb34df1a6011b80c3c00c7563e963b07",
    ],
)
def test_a_name_a_copy_or_a_folder(name: Any) -> None:
    assert dlm.recommended(name) == {
        "decoder": "low_confidence",
        "gen_length": 128,
        "block_length": 32,
        "temperature": 0.0,
    }


def test_a_loaded_model_tells_what_it_was_loaded_from(tmp_path: Path, tiny: Model) -> None:
    folder = tmp_path / "LLaDA2.1-mini"
    shutil.copytree(tiny.network.config.name_or_path, folder)
    assert dlm.recommended(dlm.load(folder)) == dlm.recommended("inclusionAI/LLaDA2.1-mini")


def test_what_is_changed_stays_with_whoever_changes_it() -> None:
    first = dlm.recommended("inclusionAI/LLaDA2.1-mini")
    first["decoder_options"]["threshold"] = 0.1
    assert dlm.recommended("inclusionAI/LLaDA2.1-mini")["decoder_options"]["threshold"] == 0.7


def test_what_is_not_known_is_refused(tiny: Model) -> None:
    told = (
        r"unknown checkpoint with recommended settings 'GSAI-ML/LLaDA-8B'\. Did you mean "
        r"'GSAI-ML/LLaDA-8B-Instruct'\? Known: "
    )
    with pytest.raises(ValueError, match=told):
        dlm.recommended("GSAI-ML/LLaDA-8B")
    for built_in in (tiny, "built-in"):
        with pytest.raises(ValueError, match="no settings are published for the built-in model"):
            dlm.recommended(built_in)
    with pytest.raises(ValueError, match="model must be a Hugging Face id, a folder or"):
        dlm.recommended(tiny.network)


def test_they_are_known_before_torch_is() -> None:
    code = "import dlm, sys; dlm.recommended('d3LLM/d3LLM_LLaDA'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_blocks_are_no_longer_than_those_of_the_attention() -> None:
    """The default of 32 is cut to what the network has: SDAR's are of 4."""
    for name in NAMES:
        size = FAMILY[name].named_block(name) or FAMILY[name].block_size
        length = dlm.recommended(name).get("block_length", size)
        assert size is None or (length or size) <= size
