"""A row has the same bits in every batch on a CPU: confidences, too, to the last one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.traits import Traits

pytestmark = pytest.mark.usefixtures("stands_alone")

Decoding = Callable[[str], dict[str, Any]]

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [1, 2, 3, 4]]
LENGTHS = (2, 41, 42, 150)
FAMILIES = (
    *("llada", "illada", "dream", "dream-reasoner", "sdar", "sdar-moe", "fast-dllm-v2"),
    *("a2d-qwen2", "a2d-qwen3", "a2d-llama", "nemotron-labs-diffusion", "open-dcoder"),
    *("coda", "diffullama", "stable-diffcoder", "wedlm"),
    *("llada2", "mdlm", "bd3lm", "llada-moe", "rnd1"),
)
FACTS: list[dict[str, Any]] = [
    *({}, {"block_size": 8}),
    *({"block_size": 8, "causal": True}, {"block_size": 8, "anchored": True, "shift": True}),
    {"block_size": 8, "causal": True, "reordered": True},
]
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]


def record(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> list[str]:
    """Canvases, commits and confidences of each row, every digit of them."""
    usual: dict[str, Any] = {"stop_at_eos": False, "seed": 3, "return_trajectory": True}
    made = dlm.generate(model, rows, row_keys=keys, **{**usual, **options})
    assert made.trajectory is not None
    return [repr(each) for each in made.trajectory]


def check(model: Model, rows: list[list[int]], **options: Any) -> list[str]:
    """Together and one by one."""
    keys = [*range(40, 40 + len(rows))]
    together = record(model, rows, keys, **options)
    for row, key, expected in zip(rows, keys, together, strict=True):
        assert record(model, [row], [key], **options) == [expected]
    return together


@pytest.mark.one_in(16)
@pytest.mark.parametrize("facts", FACTS, ids=str)
@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "cfg_scale": 0.7}], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_a_row_has_the_same_bits_alone(
    golden: Model,
    decoding: Decoding,
    decoder: str,
    cache: str,
    more: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    model = Model(golden.network, None, replace(golden.spec, **facts))
    options = {**decoding(decoder), "cache": cache, "gen_length": 13, "block_length": 4, **more}
    ahead = Traits.of(DECODERS[decoder]()).ahead
    if ahead and model.spec.causal and not model.spec.reordered:
        options["decoder_options"] = {"blocks": 1}
    if (model.spec.shift or model.spec.reordered) and decoder == "wino":
        pytest.skip("wino asks what such a family cannot answer")
    if model.spec.reordered and "cfg_scale" in more:
        pytest.skip("it is refused")
    keys = [40, 41, 42, 43]
    together = check(model, ROWS, **options)
    assert record(model, ROWS, keys, batch_size=2, **options) == together
    if model.spec.block_size is not None and cache != "none":  # one that is exact
        assert record(model, ROWS, keys, **{**options, "cache": "none"}) == together


@pytest.mark.parametrize("name", [None, "llada"])
@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("block_length", [1, 2, 3, 5])
def test_rows_of_one_length_and_narrow_windows(
    golden: Model, name: str | None, cache: str, block_length: int
) -> None:
    """So that a layer is given what lies apart in memory, of fewer tokens than it takes at once."""
    model = golden if name else dlm.load(dtype="float32")
    rows = [[20 + i, 21, 22] for i in range(5)]
    options = {"block_length": block_length, "gen_length": 6, "temperature": 1.0, "cache": cache}
    together = check(model, rows, **options)
    assert record(model, rows, [*range(40, 45)], batch_size=2, **options) == together
    check(model, [[25], [26], [27]], gen_length=2, cache=cache)
    near = [[20 + i] * (187 + i) for i in range(5)]  # hardly padded
    if name is None:
        check(model, near, gen_length=2, cache=cache)


@pytest.mark.parametrize("inner", [52, 100])
@pytest.mark.parametrize("name", ["illada", "dream", "sdar-moe"])
def test_an_inner_width_may_be_any(
    family_cases: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, inner: int
) -> None:
    """Where an activation of torch's would have elements left over."""
    monkeypatch.setitem(family_cases.CASES[name].write.__globals__, "INNER", inner)
    family_cases.CASES[name].write(tmp_path / "model")
    model = dlm.load(tmp_path / "model", dtype="float32")
    check(model, ROWS, gen_length=9, temperature=1.0)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("decoder", ["low_confidence", "wino"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_of_every_family_has_the_same_bits(
    written: Callable[[str], Path],
    asks: Callable[[str], dict[str, Any]],
    name: str,
    decoder: str,
    threads: int,
) -> None:
    """With every cache; one that is exact gives those that are computed without it."""
    model = dlm.load(written(name), dtype="float32", **asks(name))
    refused = {*model.spec.banned, model.spec.mask_id}
    usable = [token for token in range(model.spec.vocab_size) if token not in refused]
    most = model.spec.max_length - 9
    rows = [[usable[7 * i % len(usable)] for i in range(min(n, most))] for n in LENGTHS]
    options = {"decoder": decoder, "gen_length": 9, "temperature": 1.0}
    if decoder == "wino" and (model.spec.shift or model.spec.reordered):
        pytest.skip("wino asks what such a family cannot answer")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = check(model, rows, **options)
        for cache in ("prefix", "dual") if model.spec.caches else ():
            if cache in Traits.of(DECODERS[decoder]()).caches:
                cached = check(model, rows, cache=cache, **options)
                assert model.spec.block_size is None or cached == plain
    finally:
        torch.set_num_threads(before)
