"""Every decoder on every family: the canvas is filled, and a row is decoded as it is alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.decoders import DECODERS
from dlm.models.families import FAMILIES
from dlm.models.model import Model
from dlm.traits import Traits

NAMES = (
    *("llada", "illada", "llada-moe", "llada2", "dream", "dream-reasoner", "sdar", "sdar-moe"),
    *("rnd1", "fast-dllm-v2", "open-dcoder", "a2d-qwen2", "a2d-qwen3", "a2d-llama", "mdlm"),
    *("bd3lm", "nemotron-labs-diffusion", "coda", "diffullama", "stable-diffcoder", "wedlm"),
    "encoder",
)
SHIFTED = {"coda", "diffullama", "dream", "rnd1", "fast-dllm-v2", "open-dcoder"}
BLOCK_CAUSAL = {
    *("bd3lm", "dream-reasoner", "fast-dllm-v2", "llada2", "sdar", "sdar-moe"),
    "stable-diffcoder",
}
BLOCKS = BLOCK_CAUSAL | {"nemotron-labs-diffusion", "wedlm"}
"""Families whose caches are exact: of the last what is before a block is causal."""
ROWS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]  # below 5 lie an encoder's special tokens
KEYS = [20, 21, 22]
SHORT: dict[str, dict[str, Any]] = {"remdm": {"loop_steps": 2}}
"""Hyperparameters that make a decoder take no more forwards than there is to see."""

Load = Callable[[str], Model]


@pytest.fixture(scope="module")
def load(written: Callable[[str], Path], asks: Callable[[str], dict[str, Any]]) -> Load:
    """The small checkpoint of a family."""
    kept: dict[str, Model] = {}

    def read(name: str) -> Model:
        if name not in kept:
            kept[name] = dlm.load(written(name), dtype="float32", **asks(name))
        return kept[name]

    return read


def run(
    model: Model, decoder: str, cache: str, rows: list[list[int]], keys: list[int]
) -> dlm.Generation:
    return dlm.generate(
        model,
        rows,
        row_keys=keys,
        decoder=decoder,
        decoder_options=SHORT.get(decoder),
        cache=cache,
        gen_length=7,
        block_length=4,
        temperature=0.7,
        stop_at_eos=False,
    )


def test_all_of_them_are_here(load: Load) -> None:
    """A family that is new has to be written down above, with what is true of it."""
    assert set(NAMES) == {*FAMILIES, "encoder"}
    assert {name for name in NAMES if load(name).spec.shift} == SHIFTED
    assert {name for name in NAMES if load(name).spec.block_size} == BLOCKS
    assert {name for name in NAMES if load(name).spec.grid} == BLOCK_CAUSAL
    assert [name for name in NAMES if not load(name).spec.caches] == ["encoder"]
    for name in NAMES:
        assert load(name).spec.family == ("bert" if name == "encoder" else name)


@pytest.mark.one_in(16)
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_decodes_every_family(load: Load, decoder: str, family: str) -> None:
    model, traits = load(family), Traits.of(DECODERS[decoder]())
    cache = traits.caches[-1]
    if traits.ahead and model.spec.causal and not model.spec.reordered:
        with pytest.raises(ValueError, match="decoder must decode one block at a time"):
            run(model, decoder, "none", ROWS, KEYS)
        return
    if "leave_one_out" in traits.needs and family in SHIFTED | {"wedlm"}:
        with pytest.raises(
            ValueError, match=f"decoder must not ask .* for {family}, .* got '{decoder}'"
        ):
            run(model, decoder, "none", ROWS, KEYS)
        return
    if cache != "none" and family == "encoder":
        with pytest.raises(ValueError, match="cache must be 'none' for bert, whose networks keep"):
            run(model, decoder, cache, ROWS, KEYS)
        cache = "none"
    together = run(model, decoder, cache, ROWS, KEYS)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        tokens = together.tokens[number]
        assert len(tokens) == 7
        assert not {*tokens} & {*model.spec.banned}
        alone = run(model, decoder, cache, [row], [key])
        assert alone.tokens[0] == tokens
        assert alone.forwards[0] == together.forwards[number]
    if family in BLOCKS and cache != "none":
        assert run(model, decoder, "none", ROWS, KEYS).tokens == together.tokens
