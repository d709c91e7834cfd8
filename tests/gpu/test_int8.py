"""Networks of 8-bit integers on a GPU: where they go, what they give, and how their steps run."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.bench.shapes import Shape, build
from dlm.execution import Execution
from dlm.huggingface.quantization import quantize
from dlm.job import generation_job
from dlm.kernels import fused_int8, fused_layers, int8
from dlm.models import fused
from dlm.models.int8 import Int8Linear, layers_of
from dlm.models.model import Model
from dlm.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
FAMILIES = runpy.run_path(str(Path(__file__).parent.parent / "family_cases.py"))["CASES"]
LAYERS = 2
SHAPE = Shape(256, LAYERS, 4, 2, 320, 512, 256, 10000.0)
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
WINDOW_STEP = {
    "round_kernel": 4 * LAYERS,
    "int8_product_kernel": 3 * LAYERS,
    "int8_gated_kernel": LAYERS,
    "rotate_kernel": LAYERS,
    "attend_kernel": LAYERS,
    "combine_kernel": LAYERS,
    "add_norm_kernel": 2 * LAYERS,
}


@pytest.fixture(scope="module", params=["bfloat16", "float16", "experts"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "experts":
        folder, config = tmp_path_factory.mktemp("networks") / "model", dlm.W8A8Config()
        replace(FAMILIES["sdar-moe"], width=128, head=32).write(folder)
        return dlm.load(folder, device="cuda", dtype="bfloat16", quantization_config=config)
    made = build(SHAPE, "cuda", request.param)
    quantize(made.network, dlm.W8A8Config())
    return made


@pytest.fixture
def hopper(model: Model) -> None:
    if not fused_layers.covers(torch.zeros(1, device="cuda", dtype=model.network.dtype)):
        pytest.skip("not a GPU of the generation that the kernels are for")


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["ragged", "one"])
def test_recorded_steps_are_plain_ones(
    model: Model, monkeypatch: pytest.MonkeyPatch, cache: str, rows: Any, unrecorded: Execution
) -> None:
    dlm.release(model)
    options: dict[str, Any] = {"gen_length": 24, "block_length": 12, "cache": cache}
    recorded = dlm.generate(model, rows, stop_at_eos=False, **options)
    monkeypatch.setattr(Execution, "of", lambda model: unrecorded)
    plain = dlm.generate(model, rows, stop_at_eos=False, **options)
    assert recorded.tokens == plain.tokens


@pytest.mark.usefixtures("hopper")
def test_the_kernels_take_whole_layers(model: Model, launched: Any) -> None:
    names = launched(model, ROWS[0], stop_at_eos=False)
    if getattr(model.network, "packs_experts", False):
        assert names["int8_grouped_kernel"] > 0
    else:
        assert {name: names[name] for name in WINDOW_STEP} == WINDOW_STEP


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_the_host_does_not_wait_within_a_block(model: Model, cache: str, no_waits: Any) -> None:
    settings = Settings(gen_length=12, block_length=12, cache=cache, stop_at_eos=False)
    with torch.inference_mode():
        steps = generation_job(model, ROWS, settings).steps()
        for _ in range(4):
            next(steps)
        with no_waits():
            for _ in range(7):
                next(steps)


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [1, 17, 40, 700])
@pytest.mark.parametrize("columns", [96, 128], ids=["torch", "kernel"])
def test_a_layer_gives_the_bits_of_a_cpu(
    columns: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch, and on Hopper by the kernel, whose product of 128 columns is in one part."""
    monkeypatch.setattr(int8, "steps", lambda: int8.ACTIVATIONS[0])
    layer = Int8Linear(torch.nn.Linear(columns, 128, dtype=torch.bfloat16))
    layer.round()
    whole, x = layer.integers("weight"), torch.randn(tokens, columns).bfloat16()
    expected = int8.product_reference(x, whole, layer.matrix.scale, layer.bias)
    layer.cuda()
    assert not layer.matrices
    assert torch.equal(layer(x.cuda()).cpu(), expected)
    layer.cpu()
    assert torch.equal(layer.integers("weight"), whole)


def test_it_is_rounded_alike_on_both(tmp_path: Path) -> None:
    """Loaded to a GPU, moved there, and saved from there."""
    options: dict[str, Any] = {"quantization_config": dlm.W8A8Config(), "dtype": "bfloat16"}
    here, there = dlm.load(**options), dlm.load(device="cuda", **options)
    there.network.save_pretrained(tmp_path)
    here.network.cuda()
    mine, theirs = here.network.state_dict(), there.network.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again = dlm.load(tmp_path, device="cuda", dtype="bfloat16")
    assert all(not layer.matrices for layer in layers_of(again.network).values())
    ids = torch.arange(5, 25, device="cuda")[None]
    assert torch.equal(again.raw_logits(ids), there.raw_logits(ids))


@torch.inference_mode()
@pytest.mark.usefixtures("hopper")
def test_layers_by_kernels_are_near_those_by_torch(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(5, 85, device="cuda").view(2, 40)
    found = model.raw_logits(ids).float()
    monkeypatch.setattr(fused, "covers", lambda *_: False)
    monkeypatch.setattr(fused_int8, "fits", lambda *_: False)
    plain = model.raw_logits(ids).float()
    assert (found - plain).abs().mean() <= 0.05 * plain.std()
