"""Every decoder on every family: the canvas is filled, and a row is decoded as it is alone."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.traits import Traits

FAMILIES = Path(__file__).parent.parent / "golden" / "families"
NAMES = ("bd3lm", "dream", "llada2", "llada_moe", "mdlm", "rnd1", "sdar")
SHIFTED = ("dream", "rnd1")
BLOCK_CAUSAL = ("bd3lm", "llada2", "sdar")
ROWS = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
KEYS = [20, 21, 22]


@cache
def load(family: str) -> Model:
    return dlm.load(FAMILIES / family, dtype="float32")


def run(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 7, "block_length": 4, "temperature": 0.7, "stop_at_eos": False}
    return dlm.generate(model, rows, row_keys=keys, **{**usual, **options})


def test_all_of_them_are_here() -> None:
    assert sorted(path.name for path in FAMILIES.iterdir() if path.is_dir()) == sorted(NAMES)
    assert {name for name in NAMES if load(name).spec.shift} == set(SHIFTED)
    assert {name for name in NAMES if load(name).spec.block_size} == set(BLOCK_CAUSAL)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_decodes_every_family(decoder: str, family: str) -> None:
    model, traits = load(family), Traits.of(DECODERS[decoder]())
    if "leave_one_out" in traits.needs and model.spec.shift:
        with pytest.raises(ValueError, match=f"which a family that .* cannot answer: {family}"):
            run(model, ROWS, KEYS, decoder=decoder)
        return
    options: dict[str, Any] = {"decoder": decoder, "cache": traits.caches[-1]}
    together = run(model, ROWS, KEYS, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        tokens = together.tokens[number]
        assert len(tokens) == 7
        assert not {*tokens} & {*model.spec.banned}
        alone = run(model, [row], [key], **options)
        assert alone.tokens[0] == tokens
        assert alone.forwards[0] == together.forwards[number]
    if family in BLOCK_CAUSAL:
        assert run(model, ROWS, KEYS, decoder=decoder).tokens == together.tokens
