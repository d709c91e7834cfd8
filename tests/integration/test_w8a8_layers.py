"""Layers in 8-bit integers: experts, states and copies, and what tells them from others."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dlm
from dlm.huggingface.quantization import W8A8Quantizer, quantize
from dlm.kernels import int8
from dlm.models.identity import fingerprint
from dlm.models.int8 import KINDS, Int8Experts, Int8Linear, layers_of, scale_of
from tests.integration.w8a8_networks import IDS, load, same


@pytest.mark.parametrize("family", ["llada2", "llada-moe", "sdar-moe", "rnd1"])
def test_experts_give_what_their_integers_say(family: str, written: Callable[[str], Path]) -> None:
    """Each is two layers of integers, and the sum over them is in the order of their weights."""
    model = load(written(family))
    name, experts = next(
        (name, each)
        for name, each in layers_of(model.network).items()
        if isinstance(each, Int8Experts)
    )
    router = model.network.get_submodule(name.removesuffix(".experts")).gate
    x = torch.randn(9, model.network.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chosen, weights = router(x)
        made = experts(x, chosen, weights)
        for token in range(len(x)):
            total = torch.zeros_like(x[0], dtype=weights.dtype)
            for expert, weight in zip(chosen[token], weights[token], strict=True):
                inner = x[token : token + 1]
                gate_up = int8.product(inner, experts.matrices["gate_up_proj"][expert])
                gate, up = gate_up.chunk(2, -1)
                inner = experts.act_fn(gate) * up
                total += weight * int8.product(inner, experts.matrices["down_proj"][expert])[0]
            torch.testing.assert_close(made[token], total.to(x.dtype))
            alone = experts(
                x[token : token + 1], *(each[token : token + 1] for each in (chosen, weights))
            )
            assert torch.equal(alone[0], made[token])


def test_integers_are_part_of_what_tells_a_model(golden_folder: Path) -> None:
    model, other = load(golden_folder), load(golden_folder)
    layer = next(iter(layers_of(other.network).values()))
    changed = layer.integers("weight").flip(0)
    layer.matrices["weight"] = [int8.packed(changed, layer.get_buffer("scale_of_weight"))]
    assert fingerprint(other.network) != fingerprint(model.network)
    said = "float32, w8a8" if int8.steps() == 127 else "float32, w8a8 of 63 steps"
    assert model.precision() == said
    assert dlm.load(golden_folder, dtype="bfloat16").precision() == "bfloat16"


@pytest.mark.parametrize("family", ["llada", "llada2"])
def test_a_state_is_whole(family: str, written: Callable[[str], Path]) -> None:
    model, other = load(written(family)), load(written(family))
    for layer in layers_of(other.network).values():
        layer.unpack()
        for name in layer.shapes:
            layer.hold(name, -getattr(layer, name))
            layer.get_buffer(scale_of(name)).mul_(0.5)
        layer.pack()
    assert not same(other, model)
    model.network.load_state_dict(other.network.state_dict())
    assert same(other, model)
    torch.testing.assert_close(other.raw_logits(IDS), model.raw_logits(IDS), rtol=0, atol=0.02)
    whole = dlm.load(written(family), dtype="float32").network.state_dict()
    with pytest.raises(RuntimeError, match=r"must be int8, got torch.float32"):
        model.network.load_state_dict(whole, strict=False)
    assert same(other, model)


@pytest.mark.parametrize("family", ["llada", "llada2"])
def test_a_copy_is_whole(family: str, written: Callable[[str], Path]) -> None:
    model = load(written(family))
    again = pickle.loads(pickle.dumps(model.network))
    for network in (copy.deepcopy(model.network), again):
        assert same(replace(model, network=network), model)
        assert torch.equal(replace(model, network=network).raw_logits(IDS), model.raw_logits(IDS))
    plain = dlm.load(written(family), dtype="float32")
    part = next(name for name in layers_of(model.network))
    layer = KINDS[type(plain.network.get_submodule(part))](plain.network.get_submodule(part))
    assert not copy.deepcopy(layer).matrices  # one that is still to be loaded


def test_layers_take_what_others_take(written: Callable[[str], Path]) -> None:
    model = load(written("llada2"))
    width = model.network.config.hidden_size
    for layer in layers_of(model.network).values():
        if isinstance(layer, Int8Experts):
            none = torch.empty(0, 2)
            assert layer(torch.empty(0, width), none.long(), none).shape == (0, width)
            return
        assert isinstance(layer, Int8Linear)
        assert layer(torch.ones(layer.in_features)).shape == (layer.out_features,)
    raise AssertionError("no experts")


def test_a_network_is_rounded_once_and_on_a_cpu(golden_folder: Path) -> None:
    model = load(golden_folder)
    with pytest.raises(ValueError, match="quantize needs weights that are not quantized"):
        quantize(model.network, dlm.W8A8Config())
    plain = dlm.load(golden_folder)
    with pytest.raises(ValueError, match="W8A8Config is for a CPU, got weights on meta"):
        quantize(plain.network.to("meta"), dlm.W8A8Config())
    # What a map took elsewhere is noticed when it is there.
    layer, quantizer = Int8Linear(nn.Linear(2, 3, device="meta")), W8A8Quantizer(dlm.W8A8Config())
    with pytest.raises(ValueError, match=r"W8A8Config is for a CPU, got head.weight on meta"):
        quantizer.check("head.weight", layer, "weight")
