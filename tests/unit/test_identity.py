"""What tells models apart where a run goes on: configuration and rules of the tokenizer."""

from pathlib import Path

import pytest
from tokenizers.normalizers import Lowercase

import dlm
from dlm.distill.weights import facts
from dlm.models.identity import configuration
from dlm.models.model import Model


@pytest.fixture
def model() -> Model:
    """One of its own: it is changed."""
    return dlm.load()


def test_it_is_of_the_model_and_not_of_where_it_lies(model: Model, tmp_path: Path) -> None:
    model.network.save_pretrained(tmp_path)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(tmp_path)
    for again in (dlm.load(tmp_path), dlm.load(tmp_path, dtype="bfloat16"), dlm.load()):
        assert again.identity() == model.identity()


def test_what_is_no_weight_is_in_it(model: Model) -> None:
    before, told = model.identity(), facts(model)
    model.network.config.rope_theta = 50.0
    assert configuration(model.network)["rope_theta"] == 50.0
    after = model.identity()
    assert after["config"] != before["config"]
    assert after["tokenizer"] == before["tokenizer"]
    changed = facts(model)
    assert {name for name in told if told[name] != changed[name]} == {"config"}


def test_what_is_done_to_a_text_is_in_it(model: Model) -> None:
    before = model.identity()
    assert model.tokenizer is not None
    model.tokenizer(["a", "bc"], padding=True)  # which the tokenizer keeps
    assert model.identity() == before
    model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    after = model.identity()
    assert after["tokenizer"] != before["tokenizer"]
    assert after["config"] == before["config"]


def test_a_model_without_a_tokenizer_has_one(model: Model) -> None:
    bare = Model(model.network, None, model.spec)
    assert bare.identity() == model.identity() | {"tokenizer": None}
