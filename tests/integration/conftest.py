"""A small random model with the built-in tokenizer, as a folder and loaded."""

from pathlib import Path

import pytest

import dlm
from dlm.models.loading import BUILT_IN, load, silence
from dlm.models.model import Model
from dlm.models.tokenizers import read_tokenizer
from dlm.training.run import Shape, new_network

TOKENIZER = Path(dlm.__file__).parent / "assets" / BUILT_IN


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "model"
    tokenizer = read_tokenizer(str(TOKENIZER))
    assert tokenizer is not None
    shape = Shape(width=32, layers=1, heads=2, mlp_width=64)
    with silence():
        new_network(shape, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def model(folder: str) -> Model:
    with silence():
        return load(folder)
