"""Rows laid end to end decode what padded ones do."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

import dlm
from dlm.cache import Cache, Refresh, Reuse
from dlm.decoders import DECODERS, Wino
from dlm.execution import Execution
from dlm.models.attention import attention
from dlm.models.model import Model
from dlm.packing import Packed, Packing, worthwhile
from dlm.traits import Traits
from dlm.varlen import by_rows, kernel, of_flash_attn, of_torch, suits

Decoding = Callable[[str], dict[str, Any]]

ROWS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [12], [13, 14, 15]]
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]
CPU = torch.device("cpu")
USUAL: dict[str, Any] = {
    "gen_length": 9, "block_length": 4, "seed": 3, "stop_at_eos": False, "return_order": True,
}  # fmt: skip


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_what_is_packed_comes_back(lengths: list[int]) -> None:
    width = max(lengths)
    packing = Packing.of(lengths, width, CPU)
    padded = torch.arange(len(lengths) * width).view(-1, width)
    packed = packing.pack(padded)
    expected = [int(padded[row, i]) for row, n in enumerate(lengths) for i in range(n)]
    assert packed.tolist() == [expected]
    back = packing.unpack(packed)
    for row, length in enumerate(lengths):
        assert torch.equal(back[row, :length], padded[row, :length])
        assert (back[row, length:] == padded[row, length - 1]).all()
    heads = packed[:, None, :, None].expand(-1, 3, -1, 2)
    assert torch.equal(packing.heads(heads), back[:, None, :, None].expand(-1, 3, -1, 2))


def test_layers_may_be_on_other_devices() -> None:
    """accelerate moves what a layer is given, but not what stands between it and its attention."""
    packing = Packing.of([2, 3], 3, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = torch.empty(1, 4, 5, 8, device="cuda:1")
        here = [
            torch.empty_like(part, device="cuda:0")
            for part in (packing.flat, packing.place, packing.bounds)
        ]
        heads = Packing([2, 3], *here).heads(there)
        assert (heads.shape, heads.device) == ((2, 4, 3, 8), there.device)
        back = Packing([2, 3], *here).pack(heads.transpose(1, 2))
        assert (back.shape, back.device) == ((1, 5, 4, 8), there.device)


def test_rows_of_one_length_are_left_alone() -> None:
    assert not worthwhile([7, 7, 7], 7)
    assert not worthwhile([99, 100], 100)
    assert worthwhile([50, 100], 100)


def test_keys_are_kept_by_row() -> None:
    packing = Packing.of([2, 3], 3, CPU)
    cache = Cache(2, 3)
    heads = torch.arange(5.0)[None, None, :, None]
    Packed(packing, Refresh(cache, 3)).enter(heads, heads, -heads, 0)
    keys, values = cache.layer(0, heads)
    assert keys[:, :3, 0, 0].tolist() == [[0, 1, 1], [2, 3, 4]]
    assert torch.equal(values, -keys)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Have rows attend so, or all at once, whatever the processor."""

    def set_to(way: bool) -> None:
        for name in ("dlm.cache.by_rows", "dlm.packing.by_rows"):
            monkeypatch.setattr(name, lambda query: way)

    return set_to


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_rows_attend_one_by_one_as_behind_masks(
    one_by_one: Callable[[bool], None], backend: str
) -> None:
    torch.manual_seed(0)
    lengths, width = [5, 2, 2, 7], 7
    module = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation=backend),
        num_key_value_groups=2,
        scaling=0.3,
        layer_idx=0,
        training=False,
    )
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = valid[:, None, None]
    if backend == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    query = torch.randn(4, 6, width, 8)
    key, value = torch.randn(4, 3, width, 8), torch.randn(4, 3, width, 8)
    packing, cache = Packing.of(lengths, width, CPU), Cache(4, width)
    q, k, v = (packing.pack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    one_by_one(True)
    apart = attention(module, q, k, v, None, Packed(packing, Refresh(cache, width)))
    torch.testing.assert_close(
        apart, packing.pack(attention(module, query, key, value, mask)), rtol=1e-5, atol=1e-6
    )
    for part, kept in zip((key, value), cache.layers[0], strict=True):
        assert torch.equal(kept[:, :width][valid], part.transpose(1, 2)[valid])

    places = torch.arange(4)[:, None] * (width + 1) + torch.arange(2)
    fresh = query[:, :, :2], torch.randn(4, 3, 2, 8), torch.randn(4, 3, 2, 8)
    reuse = Reuse(cache, places, width, lengths=lengths)
    apart = attention(module, *fresh, None, reuse)
    rows = reuse.apart(*fresh, None, 0)
    assert rows is not None
    assert [tuple(row[1].shape) for row in rows] == [(1, 3, 5, 8), (2, 3, 2, 8), (1, 3, 7, 8)]
    one_by_one(False)
    behind = attention(module, *fresh, mask, reuse)
    torch.testing.assert_close(apart, behind, rtol=1e-5, atol=1e-6)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("more", [{}, {"cfg_scale": 0.7, "refresh_every": 3}], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_rows_one_by_one_decode_as_all_at_once(
    golden: Model,
    one_by_one: Callable[[bool], None],
    decoding: Decoding,
    decoder: str,
    cache: str,
    more: dict[str, Any],
) -> None:
    options = {**USUAL, **decoding(decoder), "cache": cache, "temperature": 1.0, **more}
    if cache == "none":
        options.pop("refresh_every", None)
    check_ways(golden, one_by_one, **options)


def check_ways(model: Model, one_by_one: Callable[[bool], None], **options: Any) -> None:
    """That it makes no difference whether rows attend one by one or all at once."""
    told = []
    for way in (True, False):
        one_by_one(way)
        made = dlm.generate(model, ROWS, **options)
        told.append((made.tokens, made.order, made.forwards, made.query_tokens))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "facts",
    [
        *({}, {"shift": True}, {"block_size": 4}),
        *({"block_size": 8, "causal": True}, {"block_size": 8, "anchored": True}),
        {"block_size": 8, "causal": True, "reordered": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_rows_one_by_one_see_no_more_than_masks_show(
    golden: Model, one_by_one: Callable[[bool], None], facts: dict[str, Any], cache: str
) -> None:
    model = replace(golden, spec=replace(golden.spec, **facts))
    options = {**USUAL, "gen_length": 12, "block_length": 32, "cache": cache}
    check_ways(model, one_by_one, steps=6, **options)
    if not facts:
        wino = {"decoder": Wino(threshold=0.01, threshold_back=0.02), "gen_length": 24}
        check_ways(model, one_by_one, **{**options, **wino})


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_recorded_steps_hang_on_no_length(
    golden: Model,
    traced: Callable[..., Execution],
    one_by_one: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    one_by_one(True)
    execution = traced()
    for rows in (ROWS, ROWS[::-1], [[7, 8], [9], ROWS[0]]):
        told = []
        for each in (execution, Execution()):
            monkeypatch.setattr(Execution, "of", lambda model, each=each: each)
            told.append(dlm.generate(golden, rows, gen_length=8, cache=cache, stop_at_eos=False))
        assert told[0].tokens == told[1].tokens


@pytest.mark.parametrize(
    ("device", "heads", "way"), [("cpu", 3, True), ("cpu", 2, False), ("meta", 3, False)]
)
def test_a_processor_has_a_head_for_every_thread(
    monkeypatch: pytest.MonkeyPatch, device: str, heads: int, way: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert by_rows(torch.empty(2, heads, 4, 8, device=device)) is way


@pytest.mark.one_in(8)
@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "cfg_scale": 0.7}], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_packed_rows_decode_as_padded_ones(
    golden: Model,
    monkeypatch: pytest.MonkeyPatch,
    decoding: Decoding,
    decoder: str,
    cache: str,
    more: dict[str, Any],
) -> None:
    options = {**USUAL, **decoding(decoder), "cache": cache, **more}
    packed = dlm.generate(golden, ROWS, **options)
    monkeypatch.setattr("dlm.forward.worthwhile", lambda lengths, width: False)
    padded = dlm.generate(golden, ROWS, **options)
    assert (packed.tokens, packed.order) == (padded.tokens, padded.order)
    assert (packed.forwards, packed.query_tokens) == (padded.forwards, padded.query_tokens)


def rows_apart(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scaling: float
) -> Tensor:
    """What a kernel for packed rows does, row by row."""
    ends = bounds.tolist()
    assert longest >= max(b - a for a, b in pairwise(ends))
    outs = []
    for begin, end in pairwise(ends):
        row = [part[begin:end].transpose(0, 1)[None] for part in (q, k, v)]
        out = scaled_dot_product_attention(row[0], row[1], row[2], scale=scaling, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_a_kernel_for_packed_rows_decodes_the_same(
    golden: Model, monkeypatch: pytest.MonkeyPatch, cfg_scale: float
) -> None:
    options: dict[str, Any] = {"gen_length": 9, "block_length": 4, "cfg_scale": cfg_scale}
    plain = dlm.generate(golden, ROWS, stop_at_eos=False, **options)
    calls: list[int] = []

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return rows_apart(*given)

    monkeypatch.setattr("dlm.packing.suits", lambda query: True)
    monkeypatch.setattr("dlm.packing.kernel", lambda: counted)
    assert dlm.generate(golden, ROWS, stop_at_eos=False, **options).tokens == plain.tokens
    layers = golden.network.config.num_hidden_layers
    assert len(calls) == 9 * layers
    calls.clear()
    causal = Model(golden.network, None, replace(golden.spec, block_size=4))
    dlm.generate(causal, ROWS, stop_at_eos=False, **options)
    dlm.generate(golden, ROWS, stop_at_eos=False, cache="dual", **options)
    assert not calls  # they mask, or keep keys by row


def test_kernels_are_called_as_they_want() -> None:
    """One head of keys for two of queries, and a scaling that is not the usual one."""
    q, k, v = (torch.randn(5, heads, 4) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    expected = rows_apart(q, k, v, bounds, 3, 0.3)

    def torch_like(q: Tensor, k: Tensor, v: Tensor, *bounds: Any) -> Tensor:
        assert k.shape == q.shape
        return rows_apart(q, k, v, bounds[0], bounds[2], 0.5)

    def flash_like(q: Tensor, k: Tensor, v: Tensor, *bounds: Any, softmax_scale: float) -> Tensor:
        return rows_apart(q, k, v, bounds[0], bounds[2], softmax_scale)

    for run in (of_torch(torch_like), of_flash_attn(flash_like)):
        torch.testing.assert_close(run(q, k, v, bounds, 3, 0.3), expected)


def test_there_is_a_kernel_but_not_for_a_cpu() -> None:
    assert kernel() is not None
    assert not suits(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16))


def test_padding_is_not_computed(golden: Model) -> None:
    seen: list[torch.Size] = []
    embed = golden.network.model.embed_tokens
    handle = embed.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    try:
        dlm.generate(golden, ROWS, gen_length=2, block_length=2, stop_at_eos=False)
    finally:
        handle.remove()
    real = sum(map(len, ROWS)) + 2 * len(ROWS)
    assert seen == [(1, real)] * 2
