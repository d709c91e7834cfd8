"""The kernels of 8-bit integers against torch; `test_triton_scan.py` runs these interpreted.

DLM_TEST_DEVICE=cuda runs the same cases on a GPU. float16, as the interpreter rounds to bfloat16
otherwise.
"""

import os
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dlm
from dlm.cache import Cache, Refresh, Reuse
from dlm.kernels import fused_experts, fused_int8, fused_layers, int8, layers
from dlm.kernels.int8 import Matrix
from dlm.models import fused
from dlm.models.experts import Experts
from dlm.models.int8 import Int8Experts, Int8Linear, layers_of
from dlm.models.linear import Linear
from dlm.models.model import Model

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
HALF = (torch.float16,) if DEVICE == "cpu" else (torch.float16, torch.bfloat16)
FAMILIES = runpy.run_path(str(Path(__file__).parent.parent / "family_cases.py"))["CASES"]
WRITTEN = Path(__file__).parent.parent / "golden" / "families" / "llada2"  # fits as it is
SIZES = {"width": 128, "head": 32, "groups": 2}  # what the kernels take
SHAPES = [((64,), 64), ((128, 64, 64), 256), ((64, 64), 192), ((256, 128), 128)]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "ON_CPU", True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = HALF[0]) -> Tensor:
    source = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=source).to(DEVICE, dtype)


def matrices(
    rows: Sequence[int], columns: int, dtype: torch.dtype, *, biased: bool
) -> list[Matrix]:
    made = []
    for i, n in enumerate(rows):
        whole, scale = int8.quantized(normal(n, columns, seed=i, dtype=torch.float32))
        made.append(Matrix(whole, scale, normal(n, seed=i, dtype=dtype) if biased else None))
    return made


def exact(x: Tensor, matrix: Matrix) -> Tensor:
    """The product in 64-bit integers, rounded to float32 once and then to the dtype."""
    whole, own = int8.integers(x.cpu(), 127)
    out = (whole.long() @ matrix.weight.cpu().long().t()).float() * matrix.scale.cpu() * own
    return (out if matrix.bias is None else out + matrix.bias.cpu()).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [64, 700])
def test_tokens_are_rounded_as_by_torch(columns: int, dtype: torch.dtype) -> None:
    x = normal(9, columns, dtype=dtype)
    x[1] = 0
    x[2] = torch.arange(columns).to(x) - columns // 2  # halves of steps, among others
    x[3] *= 1e-7
    x[4, 5], x[5, 7], x[6, 9] = float("nan"), float("inf"), -float("inf")
    whole, scale = fused_int8.tokens(x)
    plain, own = int8.integers(x.cpu(), 127)
    finite = torch.tensor([0, 1, 2, 3, 7, 8])
    assert torch.equal(whole.cpu()[finite], plain[finite].to(torch.int8))
    assert torch.equal(scale.cpu()[finite], own[finite, 0])
    assert scale.isfinite().tolist() == [n in finite for n in range(9)]
    assert whole[finite].abs().amax(-1).tolist() == [127, 0, 127, 127, 127, 127]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tokens", [1, 33, 129])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_products(rows: tuple[int, ...], columns: int, tokens: int, dtype: torch.dtype) -> None:
    x = normal(tokens, columns, dtype=dtype)
    some = matrices(rows, columns, dtype, biased=tokens > 1)
    assert fused_int8.fits(*(each.weight for each in some))
    found = fused_int8.product(x, some).cpu()
    parts = fused_layers.split(sum(rows), columns, fused_int8.block_of(columns))
    several = parts > 1 and tokens <= fused_layers.FEW
    assert found.shape == (parts if several else 1, tokens, sum(rows))
    assert found.dtype == (torch.float32 if several else dtype)
    plain = torch.cat([exact(x, each) for each in some], 1)
    if parts == 1:
        assert torch.equal(found[0], plain)
    else:  # a sum in two parts is rounded twice
        unit, made = torch.finfo(dtype).eps, layers.whole(found, dtype)
        torch.testing.assert_close(made, plain, rtol=unit, atol=1e-5)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 64), (33, 64), (65, 192), (129, 128)])
@pytest.mark.parametrize("dtype", HALF)
def test_gates(dtype: torch.dtype, tokens: int, rows: int) -> None:
    x = normal(tokens, 128, dtype=dtype)
    gate, up = matrices((rows, rows), 128, dtype, biased=False)
    found = fused_int8.gated(x, gate, up).cpu()
    plain = F.silu(exact(x, gate)) * exact(x, up)
    # The exponential may differ in its last bit, and then what is rounded behind it.
    torch.testing.assert_close(found, plain, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """One after the other, as kernels do it."""
    made = parts[0]
    for part in parts[1:]:
        made = made + part
    return made.to(dtype)


def test_tokens_may_have_strides_and_no_gradient() -> None:
    x, (one,) = normal(256, 9).t(), matrices((64,), 256, HALF[0], biased=False)
    wide = normal(9, 512)[:, ::2]
    for tokens in (x, wide, wide[:1].expand(9, -1)):
        found, plain = fused_int8.product(tokens, [one]), exact(tokens, one)
        torch.testing.assert_close(added(found, HALF[0]).cpu(), plain, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="products of 8-bit integers have no gradient"):
        fused_int8.product(x.clone().requires_grad_(), [one])


def test_a_token_has_the_same_bits_in_every_batch() -> None:
    """Also in parts, which of many tokens the kernel adds up, and of few what comes next."""
    x, some = normal(140, 512), matrices((64, 64), 512, HALF[0], biased=True)
    assert fused_layers.split(128, 512, fused_int8.block_of(512)) == 4
    every = fused_int8.product(x, some)[0]
    gates = fused_int8.gated(x, some[0], some[0])
    for one in (slice(4, 5), slice(3, 36), slice(10, 138)):
        made = fused_int8.product(x[one], some)
        assert torch.equal(added(made, HALF[0]), every[one])
        assert torch.equal(fused_int8.gated(x[one], some[0], some[0]), gates[one])


LONG = pytest.mark.slow  # seconds under the interpreter


@pytest.mark.parametrize(
    ("tokens", "each", "experts", "size"),
    [(1, 2, 4, 16), (5, 3, 8, 16), (40, 4, 6, 32), (150, 2, 3, 128), (7, 1, 300, 16)],
)
def test_experts(tokens: int, each: int, experts: int, size: int) -> None:
    """Few choices for many experts, many for few, experts that nobody chose, and all for two."""
    x = normal(tokens, 64)
    many = matrices([64] * experts, 64, HALF[0], biased=False)
    weight, scale = (torch.stack([getattr(m, n) for m in many]) for n in ("weight", "scale"))
    chosen = normal(tokens, experts, dtype=torch.float32).topk(each).indices
    if tokens == 150:
        chosen = torch.tensor([[2, 0]], device=DEVICE).expand(tokens, -1)
    by = fused_experts.tiles(chosen, experts)
    assert by.size == size
    token, expert = by.order.cpu() // each, chosen.flatten()[by.order].cpu()
    assert expert.tolist() == sorted(chosen.flatten().tolist())
    rows = x.float()[token.to(DEVICE)]
    plain = torch.stack([exact(row[None], many[e])[0] for row, e in zip(rows, expert, strict=True)])
    assert torch.equal(fused_experts.grouped(x, weight, scale, by, each).cpu(), plain)
    placed = fused_experts.grouped(rows, weight, scale, by).cpu()
    assert torch.equal(placed[by.order.cpu()], plain)


@torch.inference_mode()
def test_layers_of_experts_give_the_bits_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "steps", lambda: int8.ACTIVATIONS[0])
    if not int8.exact(int8.steps()):
        pytest.skip("products of so many steps are not exact on this processor")
    sizes = {"num_experts": 5, "hidden_size": 128, "moe_intermediate_size": 64}
    layer = Int8Experts(Experts(SimpleNamespace(**sizes, hidden_act="silu")))
    for name in layer.shapes:
        layer.get_parameter(name).normal_(generator=torch.Generator().manual_seed(1))
    layer.round()
    x, weights = normal(9, 128).cpu(), normal(9, 2).cpu().softmax(-1)
    chosen = normal(9, 5, dtype=torch.float32).cpu().topk(2).indices
    plain = layer(x, chosen, weights)
    layer.unpack()
    layer.to(DEVICE)
    found = layer(x.to(DEVICE), chosen.to(DEVICE), weights.to(DEVICE)).cpu()
    if DEVICE == "cpu":
        assert torch.equal(found, plain)
    else:  # whose exponential may be another, and then a step
        assert (found - plain).abs().mean() <= 0.01 * plain.std()


@pytest.fixture(params=["dream", *(pytest.param(name, marks=LONG) for name in ("sdar", "llada2"))])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    folder, left = tmp_path / "model", ["lm_head"]
    if request.param == "llada2":
        folder, left = WRITTEN, ["lm_head", "experts"]
    else:
        replace(FAMILIES[request.param], **SIZES).write(folder)
    config = dlm.W8A8Config(left)
    made = dlm.load(folder, dtype="float16", device=DEVICE, quantization_config=config)
    for layer in layers_of(made.network).values():
        layer.unpack()  # as on a GPU
    return made


def states(model: Model) -> Tensor:
    """Of a window against what a forward of whole rows left."""
    tokens = torch.arange(3 * 40, device=DEVICE).remainder(89).view(3, 40)
    columns = torch.arange(40, device=DEVICE)
    valid = columns < torch.tensor([[40], [33], [9]], device=DEVICE)
    kept = Cache(3, 44)
    model.states(tokens, columns[None], valid, cache=Refresh(kept, 40))
    window = torch.tensor([[4], [20], [0]], device=DEVICE) + columns[:9]
    reused = Reuse(kept, window + 45 * columns[:3, None], 40)
    return model.states(tokens.gather(1, window) // 2, window, None, reused, attend=valid[:, None])


def dequantize(model: Model) -> None:
    """Put layers of the same weights, float64, in the place of those of integers."""
    if getattr(model.network, "packs_experts", False):
        model.network.set_experts_implementation("eager")  # no other takes float64
    for name, layer in layers_of(model.network).items():
        assert isinstance(layer, Int8Linear)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight.data = layer.weight.double() * layer.matrix.scale.double()[:, None]
        plain.bias = layer.bias
        path, _, own = name.rpartition(".")
        setattr(model.network.get_submodule(path), own, plain)
    model.network.double()


@torch.inference_mode()
def test_networks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers of integers, by these kernels and by torch: apart by a rounding now and then."""
    taken: list[str] = []

    def counted(name: str, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            taken.append(name)
            return plain(*given)

        return call

    for name in ("product", "gated"):
        monkeypatch.setattr(fused_int8, name, counted(name, getattr(fused_int8, name)))
    found = states(model)
    layers = len(model.network.model.layers)
    dense = not getattr(model.network, "packs_experts", False)
    assert taken.count("product") >= 2 * layers * (3 if dense else 2)
    assert taken.count("gated") >= (2 * layers if dense else 0)
    monkeypatch.setattr(fused, "covers", lambda *_: False)
    monkeypatch.setattr(fused_int8, "fits", lambda *_: False)
    plain = states(model)
    # What is rounded otherwise once may fall to another step: both are as far from what is not
    # rounded at all, but for a near tie of experts, which falls to either side.
    dequantize(model)
    exact = states(model)
    error, allowed = ((each.double() - exact).abs().mean() for each in (found, plain))
    assert 0 < error <= (1.1 if dense else 2) * allowed
    assert allowed <= (0.05 if dense else 0.2) * exact.std()


@torch.inference_mode()
def test_layers_by_themselves(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layers around are run by torch."""
    layer = next(each for each in layers_of(model.network).values() if isinstance(each, Int8Linear))
    x = normal(2, 5, layer.in_features)
    found = layer(x)
    monkeypatch.setattr(fused_int8, "fits", lambda *_: False)
    torch.testing.assert_close(layer(x), found, rtol=1e-3, atol=1e-5)


@torch.inference_mode()
def test_matrices_of_a_launch_are_of_a_kind(model: Model) -> None:
    network = model.network.model
    x = torch.zeros(1, 2, network.config.hidden_size, dtype=torch.float16, device=DEVICE)
    kinds = type(network.layers[0]), type(network.layers[0].self_attn)
    assert fused.covers(network, x, kinds)
    attention = network.layers[0].self_attn
    for name, fit in (("o_proj", True), ("k_proj", False)):
        if name == "k_proj" and attention.fused:  # all three are one matrix
            continue
        rounded = getattr(attention, name)
        plain = Linear(rounded.in_features, rounded.out_features, rounded.bias is not None)
        setattr(attention, name, plain.to(DEVICE, torch.float16))
        assert fused.covers(network, x, kinds) == fit
        setattr(attention, name, rounded)
        assert fused.covers(network, x, kinds)
    attention.o_proj.pack()  # as on a CPU
    assert fused.covers(network, x, kinds) == (DEVICE != "cpu")
