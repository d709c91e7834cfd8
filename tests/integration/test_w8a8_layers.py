"""Layers in 8-bit integers: experts, states and copies, and what tells them from others."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dlm
from dlm.huggingface.quantization import W8A8Quantizer, quantize
from dlm.kernels import fused_experts, int8
from dlm.models.experts import Experts
from dlm.models.identity import fingerprint
from dlm.models.int8 import (
    KINDS,
    Int8Experts,
    Int8Linear,
    check_place,
    layers_of,
    scale_of,
)
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
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"must be int8, got torch.float32"):
            model.network.load_state_dict(whole, strict=False)
        assert same(other, model)
        for layer in layers_of(model.network).values():
            layer.unpack()  # as on a GPU


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


def test_a_network_is_rounded_once_and_where_it_can_be_run(golden_folder: Path) -> None:
    model = load(golden_folder)
    with pytest.raises(ValueError, match="quantize needs weights that are not quantized"):
        quantize(model.network, dlm.W8A8Config())
    plain = dlm.load(golden_folder).network.to("meta")
    with pytest.raises(ValueError, match=r"for a CPU or for GPUs, got weights on meta$"):
        quantize(plain, dlm.W8A8Config())
    assert not layers_of(plain)
    # What a map took elsewhere is noticed when it is there.
    layer, quantizer = Int8Linear(nn.Linear(2, 3, device="meta")), W8A8Quantizer(dlm.W8A8Config())
    with pytest.raises(ValueError, match=r"for a CPU or for GPUs, got head.weight on 'meta'"):
        quantizer.check("head.weight", layer, "weight")


@pytest.mark.parametrize("family", ["llada", "dream", "mdlm", "encoder"])
def test_integers_are_the_same_as_they_are_loaded_and_as_they_are_laid_out(
    family: str, written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they stay as they are loaded, and give the bits that a CPU gives."""
    model = load(written(family))
    if int8.steps() != int8.ACTIVATIONS[0]:
        pytest.skip("fewer steps on this processor than on a GPU")
    before = model.raw_logits(IDS)
    out = dlm.generate(model, [[5, 6, 7], [8]], gen_length=6, temperature=0.5)
    for layer in layers_of(model.network).values():
        layer.unpack()
    monkeypatch.setattr(int8, "product", None)
    assert torch.equal(model.raw_logits(IDS), before)
    again = dlm.generate(model, [[5, 6, 7], [8]], gen_length=6, temperature=0.5)
    assert again.tokens == out.tokens


def test_a_network_moves(written: Callable[[str], Path]) -> None:
    """What leaves a CPU has its integers as they were loaded, and is laid out when it is back."""
    model, other = load(written("llada")), load(written("llada"))
    model.network.to("meta")
    for layer in layers_of(model.network).values():
        assert not layer.matrices
        assert layer.get_parameter("weight").dtype == torch.int8
    model.network.to_empty(device="cpu")
    assert all(layer.matrices for layer in layers_of(model.network).values())
    model.network.load_state_dict(other.network.state_dict())
    assert same(model, other)


@pytest.mark.parametrize(
    ("family", "layer"), [("llada2", "layers.1.mlp.experts"), ("encoder", "attention.self.query")]
)
def test_a_network_that_cannot_follow_moves_nowhere(
    family: str,
    layer: str,
    written: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in part, either: the layer is named before anything is moved."""
    network, moved = load(written(family)).network, []
    if family == "encoder":  # all of whose sizes a GPU takes
        monkeypatch.setattr(int8, "MULTIPLE", 1 << 20)

    def moving(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.numel())
        return SimpleNamespace(device=torch.device("cuda"))  # type: ignore[return-value]

    with pytest.raises(ValueError, match=rf"got .* of \S*{layer}: name it"):
        network._apply(moving)
    assert moved == [0]


def test_layers_are_laid_out_wherever_tensors_are_made(written: Callable[[str], Path]) -> None:
    network = load(written("llada")).network
    with torch.device("meta"):
        network.to(torch.bfloat16)
    assert all(layer.matrices for layer in layers_of(network).values())


def test_devices_are_planned_by_bytes_of_integers(written: Callable[[str], Path]) -> None:
    model = load(written("llada"), dtype="bfloat16")
    quantizer, sizes = model.network.hf_quantizer, set()
    for name, weight in dlm.load(written("llada")).network.named_parameters():
        sizes.add(
            (
                name.endswith("_proj.weight"),
                quantizer.param_element_size(model.network, name, weight),
            )
        )
    assert sizes == {(True, 1), (False, 4)}


def test_what_a_gpu_cannot_multiply_is_named(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(written("llada2"))
    experts = next(
        each for each in layers_of(model.network).values() if isinstance(each, Int8Experts)
    )
    with pytest.raises(ValueError, match=r"be multiples of 64 on a GPU, got \[\d+, \d+\] of mlp"):
        check_place("mlp", experts, "cuda")
    fits = SimpleNamespace(
        num_experts=2, hidden_size=64, moe_intermediate_size=64, hidden_act="silu"
    )
    for layer in (Experts(fits), Int8Experts(Experts(fits))):
        check_place("mlp", layer, "cuda")
        with monkeypatch.context() as patched:
            for capability in (None, (7, 5), (8, 0)):  # of the GPUs here
                patched.setattr(torch.cuda, "device_count", lambda: 2)
                patched.setattr(fused_experts, "capability", lambda index, it=capability: it)
                if capability == (8, 0):
                    check_place("mlp", layer, "cuda")
                    continue
                with pytest.raises(ValueError, match=r"triton on a GPU, and one of .*8.0"):
                    check_place("mlp", layer, "cuda")
    with pytest.raises(ValueError, match=r"must be multiples of 8 on a GPU, got \[9, 16\] of head"):
        check_place("head", nn.Linear(16, 9), "cuda")
    with pytest.raises(ValueError, match="must have at most 133144 inputs, got 133152"):
        check_place("head", nn.Linear(133152, 8, device="meta"), "cuda")
    check_place("head", Int8Linear(nn.Linear(16, 8)), "cuda")
    with pytest.raises(ValueError, match="got head on 'mps'"):
        check_place("head", nn.Linear(16, 8), "mps")
    # Before anything is read, or put in the place of something.
    quantizer, plain = W8A8Quantizer(dlm.W8A8Config()), dlm.load(written("llada2"))
    quantizer.validate_environment(device_map={"": 0})
    with pytest.raises(ValueError, match=r"be multiples of 64 on a GPU, got .* of .*experts"):
        quantizer.preprocess_model(plain.network)
    assert not layers_of(plain.network)
