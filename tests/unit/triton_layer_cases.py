"""The kernels of layers against torch; `test_triton_scan.py` runs these under the interpreter.

DLM_TEST_DEVICE=cuda runs the same cases on a GPU. float16, as the interpreter has no products of
bfloat16.
"""

import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.kernels import fused_layers, layers
from dlm.kernels.layers import Heads, Norms, Slots
from dlm.models import fused
from dlm.models.linear import Mlp
from dlm.models.model import Model
from dlm.models.transformer import Attention, Layer

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
DTYPES = (torch.float16,) if DEVICE == "cpu" else (torch.float16, torch.bfloat16)
FAMILIES = runpy.run_path(str(Path(__file__).parent.parent / "family_cases.py"))["CASES"]
WRITTEN = Path(__file__).parent.parent / "golden" / "families" / "llada2"  # fits as it is
SIZES = {"width": 128, "head": 32, "groups": 2}  # what the kernels take
TOKENS = torch.arange(3 * 40).remainder(89).view(3, 40)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "ON_CPU", True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DTYPES[0]) -> Tensor:
    source = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=source).to(DEVICE, dtype)


def near(found: Tensor, plain: Tensor, exact: Tensor, most: float = 0.02) -> None:
    """Against float64 at most twice the error of torch, the rule of flash-attention's tests."""
    scale = exact.abs().max()
    error, allowed = ((part.double() - exact).abs().max() for part in (found, plain))
    assert found.isfinite().all()
    assert error <= 2 * allowed + 1e-3 * scale, (float(error), float(allowed), float(scale))
    assert error <= most * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 33, 65, 128, 129])
@pytest.mark.parametrize(
    ("rows", "columns"), [((64,), 64), ((128, 64, 64), 256), ((64, 64), 128), ((256, 128), 64)]
)
def test_products(
    rows: tuple[int, ...], columns: int, tokens: int, biased: bool, dtype: torch.dtype
) -> None:
    x = normal(tokens, columns, dtype=dtype)
    weights = [normal(n, columns, seed=i, dtype=dtype) for i, n in enumerate(rows)]
    biases = [normal(n, seed=i, dtype=dtype) if biased else None for i, n in enumerate(rows)]
    found = fused_layers.product(x, weights, biases)
    parts = fused_layers.split(sum(rows), columns) if tokens <= fused_layers.FEW else 1
    assert found.shape == (parts, tokens, sum(rows))
    exact = layers.product(
        x.double(),
        [w.double() for w in weights],
        [None if b is None else b.double() for b in biases],
    )
    near(found.float().sum(0), layers.product(x, weights, biases)[0], exact[0])


def test_how_products_are_split() -> None:
    assert [fused_layers.split(*shape) for shape in ((64, 256), (64, 192), (4096, 4096))] == [
        4,
        1,
        2,
    ]
    assert [fused_layers.split(*shape) for shape in ((12288, 4096), (4096, 12288))] == [1, 2]


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("tokens", [1, 33, 64, 65, 128, 129])
def test_gates(tokens: int, rows: int) -> None:
    x, gate, up = normal(tokens, 128), *(normal(rows, 128, seed=seed) / 8 for seed in (1, 2))
    found = fused_layers.gated(x, gate, up)
    exact = layers.gated(x.double(), gate.double(), up.double())
    near(found, layers.gated(x, gate, up), exact)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("width", [64, 96])
def test_residuals_and_norms(width: int, parts: int) -> None:
    x, weight = normal(5, width), normal(width)
    more = normal(parts, 5, width, dtype=torch.float32 if parts > 1 else DTYPES[0])
    found, plain = (m.add_norm(x, more, weight, 1e-5) for m in (fused_layers, layers))
    assert torch.equal(found[0], plain[0])
    near(
        found[1],
        plain[1],
        layers.add_norm(found[0].double(), 0 * more[:1], weight.double(), 1e-5)[1],
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("exact", [False, True], ids=["half", "float32"])
@pytest.mark.parametrize("rotated", [32, 16])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_rotation(parts: int, kept: bool, rotated: int, exact: bool, normed: bool) -> None:
    heads, tokens = Heads(6, 2, 32), 7
    more = normal(parts, tokens, 10 * 32, dtype=torch.float32 if parts > 1 else DTYPES[0])
    angle = normal(tokens if kept else 3, rotated, dtype=torch.float32)
    angles = tuple(
        f(angle).to(torch.float32 if exact else DTYPES[0]) for f in (torch.cos, torch.sin)
    )
    norms = Norms(normal(32, seed=1), normal(32, seed=2), 1e-6) if normed else None

    def made(rotate: Callable[..., Any]) -> tuple[Tensor, ...]:
        slots = None
        if kept:
            places = torch.tensor([3, 0, 8, 1, 9, 5, 4], device=DEVICE)
            slots = Slots(normal(2, 5, 2, 32, seed=5), normal(2, 5, 2, 32, seed=6), places)
        out: tuple[Tensor, ...] = rotate(more, heads, angles, norms, slots, DTYPES[0])
        return out

    for found, plain in zip(made(fused_layers.rotate), made(layers.rotate), strict=True):
        if normed:
            torch.testing.assert_close(found, plain, rtol=2e-3, atol=2e-3)
        else:
            assert torch.equal(found, plain)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    x, weight = normal(33, 256), normal(64, 256)
    every = fused_layers.product(x, [weight], [None])
    gates = fused_layers.gated(x, weight, weight)
    for one in (slice(4, 5), slice(0, 17)):
        assert torch.equal(fused_layers.product(x[one], [weight], [None]), every[:, one])
        assert torch.equal(fused_layers.gated(x[one], weight, weight), gates[one])
    # As many tokens as there are kernels for, in programs of 64 rows and of 128.
    x = normal(128, 64)
    for weight in (normal(192, 64), normal(128, 64)):
        every, gates = (
            fused_layers.product(x, [weight], [None]),
            fused_layers.gated(x, weight, weight),
        )
        for one in (slice(0, 1), slice(3, 36), slice(0, 65)):
            assert torch.equal(fused_layers.product(x[one], [weight], [None]), every[:, one])
            assert torch.equal(fused_layers.gated(x[one], weight, weight), gates[one])


LONG = pytest.mark.slow  # seconds under the interpreter
NAMES = (
    *("llada", "llada2", "dream", "sdar", "sdar-moe", "fast-dllm-v2"),
    "nemotron-labs-diffusion",
)


def some(quick: dict[str, tuple[str, ...]]) -> list[Any]:
    """Every case with every family, slow where `quick` does not name it: one takes seconds."""
    return [
        pytest.param(case, name, marks=() if name in families else pytest.mark.slow)
        for case, families in quick.items()
        for name in NAMES
    ]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    folder = WRITTEN
    if request.param != "llada2":
        folder = tmp_path / "model"
        replace(FAMILIES[request.param], **SIZES).write(folder)
    made = dlm.load(folder, dtype="float16", device=DEVICE)
    if request.param == "llada":  # no release that the kernels take has these
        for layer in made.network.model.layers:
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.bias = torch.nn.Parameter(normal(len(part.weight)), requires_grad=False)
    return made


def states(model: Model, cache: str) -> Tensor:
    """Of whole rows, or of a window against what a forward of whole rows left."""
    from dlm.cache import Cache, Refresh, Reuse

    tokens = TOKENS.to(DEVICE)
    columns = torch.arange(40, device=DEVICE)
    valid = columns < torch.tensor([[40], [33], [9]], device=DEVICE)
    if cache == "none":
        return model.states(tokens, columns[None], valid)
    each = 2 if cache == "branches" else 1  # of which the first one is computed
    lines = slice(None, None, each)
    kept = Cache(3 * each, 44)  # of a canvas that was longer before a row left
    model.states(tokens, columns[None], valid, cache=Refresh(kept, 40, lines))
    window = torch.tensor([[4], [20], [0]], device=DEVICE) + columns[:9]
    fresh = tokens.gather(1, window) // 2
    among = window + 45 * each * columns[:3, None]
    if cache == "shadows":  # three more queries, whose keys are not kept
        more = torch.cat((valid, valid.new_ones(3, 3)), 1)[:, None]
        places = torch.cat((window, window[:, :3]), 1)
        fresh = torch.cat((fresh, fresh[:, :3] + 1), 1)
        return model.states(fresh, places, None, Reuse(kept, among, 40), attend=more)
    reused = Reuse(kept, among, 40, lines)
    return model.states(fresh, window, None, reused, attend=valid[:, None])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("cache", "model"),
    some({"none": (), "dual": ("dream",), "dual, wide": (), "shadows": (), "branches": ("sdar",)}),
    indirect=["model"],
)
def test_networks(model: Model, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cache == "dual, wide":  # more queries than the kernel of attention takes
        monkeypatch.setattr(fused_layers, "WINDOW", 8)
    taken: list[int] = []

    def counted(*given: Any) -> Tensor:
        taken.append(1)
        return run(*given)

    run = fused.run
    monkeypatch.setattr(fused, "run", counted)
    found = states(model, cache)
    assert len(taken) == 1 + (cache != "none")
    monkeypatch.setattr(fused, "covers", lambda *_: False)
    plain = states(model, cache)
    most = 0.02
    if getattr(model.network, "packs_experts", False):
        most = 1.0  # near ties of experts fall to either side in half precision
    model.network.double()
    near(found, plain, states(model, cache), most)


@torch.inference_mode()
@pytest.mark.parametrize(("cache", "model"), some({"none": ()}), indirect=["model"])
def test_weights_are_those_of_the_moment(
    model: Model, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of which others were put after a forward."""
    before = states(model, cache)
    for weight in model.network.model.layers[0].parameters():
        weight.data = weight * 0.5
    found = states(model, cache)
    monkeypatch.setattr(fused, "covers", lambda *_: False)
    plain = states(model, cache)
    assert (found - plain).abs().max() < 0.1 * (before - plain).abs().max()


class Quantised(Tensor):
    """A tensor that says it is another, as quantised ones do."""

    @staticmethod
    def __new__(cls, *shape: int) -> "Quantised":
        made: Quantised = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float16)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> "Quantised":
        assert function is torch.ops.aten.detach.default
        return cls(128, 128)


def swaps(network: Any) -> Iterator[tuple[Any, str, Any]]:
    """What somebody might put in the place of something: owner, name and value."""
    layer = network.layers[1]
    attention = layer.self_attn
    subclass = type("Mine", (type(attention),), {})
    yield network, "norm", type("Norm", (torch.nn.RMSNorm,), {})(network.config.hidden_size)
    yield attention, "o_proj", torch.nn.Sequential()
    yield attention, "__class__", subclass
    yield layer, "__class__", type("Mine", (type(layer),), {})
    yield attention.o_proj, "weight", torch.nn.Parameter(Quantised(128, 128), requires_grad=False)
    yield network.config, "_attn_implementation", "eager"
    if isinstance(network.layers[0].mlp, Mlp):
        yield network.layers[0].mlp, "act_fn", torch.nn.Tanh()


@torch.inference_mode()
def test_what_was_put_in_place_of_a_module_is_called(model: Model) -> None:
    """Hooks, other modules and weights of another kind leave the layers to torch."""
    network = model.network.model
    x = normal(1, 5, network.config.hidden_size)

    def covered(x: Tensor) -> bool:
        return fused.covers(network, x, (Layer, Attention))

    assert covered(x)
    layer = network.layers[1]
    for part in (network.norm, layer, layer.self_attn, layer.self_attn.o_proj):
        handle = part.register_forward_hook(lambda *_: None)
        assert not covered(x)
        handle.remove()
        assert covered(x)
    for owner, name, value in swaps(network):
        kept = getattr(owner, name)
        setattr(owner, name, value)
        assert not covered(x), name
        setattr(owner, name, kept)
        assert covered(x), name
    assert not covered(x.float())
    with torch.inference_mode(False), torch.enable_grad():
        assert not covered(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert not covered(x)
    layer.self_attn.o_proj.float()
    assert not covered(x)


@torch.inference_mode()
@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=() if name == "llada2" else LONG) for name in NAMES],
    indirect=True,
)
def test_embeddings_may_have_strides(model: Model) -> None:
    network = model.network.model
    wide = normal(1, 20, 2 * network.config.hidden_size)[:, ::2, : network.config.hidden_size]
    found = network(inputs_embeds=wide).last_hidden_state
    assert torch.equal(found, network(inputs_embeds=wide.contiguous()).last_hidden_state)
