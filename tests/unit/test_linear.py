"""Products on a CPU: against torch's, and of tokens that stand beside others.

Shapes: M tokens, K columns, N rows of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from dlm.kernels import linear as by
from dlm.kernels.layers import gated as gated_reference
from dlm.models import dit
from dlm.models.attention import attention
from dlm.models.linear import Linear, Mlp

HALF = torch.bfloat16 in by._dtypes()
DTYPES = [torch.float32, torch.bfloat16] if HALF else [torch.float32]
LARGE = by.SMALL // 256  # rows, of so many columns


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return normal(rows, columns, seed=seed).div(columns**0.5).to(dtype)


def close(made: Tensor, expected: Tensor) -> None:
    """As near to products in float64 as float32, or half precision, comes."""
    most = 2e-2 if made.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(made.double(), expected, rtol=most, atol=most)


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, *by.ACTIVATIONS])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [24, LARGE])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3), (5, 13)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_is_that_of_torch(
    dtype: torch.dtype, shape: tuple[int, ...], rows: int, biased: bool, activation: str | None
) -> None:
    x, weight = normal(*shape, 256, dtype=dtype), matrix(rows, 256, dtype)
    bias = normal(rows, dtype=dtype, seed=2) if biased else None
    assert by.covers(x, weight) == bool(by._dtypes())
    wide = None if bias is None else bias.double()
    expected = by.linear_reference(x.double(), weight.double(), wide, activation)
    close(by.linear(x, weight, bias, activation), expected)


@torch.no_grad()
@pytest.mark.parametrize("rows", [24, LARGE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_is_that_of_torch(dtype: torch.dtype, rows: int) -> None:
    for shape in ((1, 1, 256), (7, 256), (2, 9, 256)):
        x, gate, up = normal(*shape, dtype=dtype), *(matrix(rows, 256, dtype, s) for s in (1, 2))
        close(by.gated(x, gate, up), gated_reference(x.double(), gate.double(), up.double()))
        biases = [normal(rows, dtype=dtype, seed=seed) for seed in (3, 4)]
        wide = [each.double() for each in (x, gate, up, *biases)]
        close(by.gated(x, gate, up, *biases), by.gated(*wide))


@pytest.mark.usefixtures("stands_alone")
@torch.no_grad()
@settings(deadline=None, max_examples=100)
@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(1, 90),
    columns=st.sampled_from([7, 24, 64, 256, 520]),
    rows=st.sampled_from([5, 24, 96, 352, LARGE]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_a_token_has_the_same_bits_whatever_stands_beside_it(
    dtype: torch.dtype, tokens: int, columns: int, rows: int, threads: int, data: st.DataObject
) -> None:
    x, gate, up = (
        normal(tokens, columns, dtype=dtype),
        *(matrix(rows, columns, dtype, s) for s in (1, 2)),
    )
    order = data.draw(st.permutations(range(tokens)))
    some = torch.tensor(order[: data.draw(st.integers(1, tokens))])
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: by.linear(x, gate),
        lambda x: by.linear(x, gate, up[:, 0].contiguous(), "silu"),
        lambda x: by.linear(x, gate, None, "gelu_tanh"),
        lambda x: by.linear(x, gate, None, "sigmoid"),
        lambda x: by.gated(x, gate, up),
    ]
    with with_threads(threads):
        for way in ways:
            assert torch.equal(way(x[some]), way(x)[some])
            first = data.draw(st.integers(0, tokens - 1))
            assert torch.equal(way(x[first:]), way(x)[first:])  # where it lies in memory
            strided = torch.stack((x, x))[:, first:]  # as attention leaves them
            assert torch.equal(way(strided)[1], way(x)[first:])
            assert torch.equal(way(torch.cat((x, x), 1)[first:, columns:]), way(x)[first:])


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_torch_itself_lets_a_token_see_how_many_there_are() -> None:
    """The control: without the fours some bits are others."""
    x, weight = normal(257, 64), matrix(352, 64)
    plain = F.linear(x, weight)
    unlike = [m for m in range(1, 12) if not torch.equal(F.linear(x[:m], weight), plain[:m])]
    if not unlike:
        pytest.skip("the BLAS of this torch adds up alike for any number of tokens")
    assert all(torch.equal(by.linear(x[:m], weight), plain[:m]) for m in unlike)


@pytest.mark.parametrize("rows", [24, LARGE])
def test_a_gradient_is_torchs(rows: int) -> None:
    x, layer = normal(3, 256).requires_grad_(), Linear(256, rows)
    assert not by.covers(x, layer.weight)
    given = (x, layer.weight, layer.bias)
    made = torch.autograd.grad(layer(x).square().sum(), given)
    expected = torch.autograd.grad(F.linear(*given).square().sum(), given)
    assert all(map(torch.equal, made, expected))


@contextmanager
def without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class Sharded(Tensor):
    """A tensor that is not what it says."""


@torch.no_grad()
@pytest.mark.parametrize(
    ("x", "weight", "context"),
    [
        (normal(3, 256, dtype=torch.float64), matrix(LARGE, 256).double(), nullcontext),
        (normal(3, 256), matrix(256, LARGE).t(), nullcontext),
        (normal(0, 256), matrix(LARGE, 256), nullcontext),
        (normal(3, 256), matrix(LARGE, 256).as_subclass(Sharded), nullcontext),
        (normal(3, 256).as_subclass(Sharded), matrix(LARGE, 256), nullcontext),
        (
            *(normal(3, 256), matrix(LARGE, 256)),
            lambda: torch.autocast("cpu", torch.bfloat16),
        ),
        (
            *(normal(3, 256), matrix(LARGE, 256)),
            without_onednn,
        ),
    ],
)
def test_all_else_is_left_to_torch(x: Tensor, weight: Tensor, context: Callable[[], Any]) -> None:
    with context():
        assert not by.covers(x, weight)
        made, expected = by.linear(x, weight, None, "silu"), F.silu(F.linear(x, weight))
    assert torch.equal(made, expected)
    assert made.dtype == expected.dtype
    assert type(made) is type(expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rows", [24, LARGE])
def test_what_is_traced_or_exported_holds_products_of_torch(rows: int) -> None:
    layer, x = Linear(256, rows), normal(3, 256)
    expected = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(torch.jit.trace(layer, x)(x), expected)
    program = torch.export.export(layer, (x,))
    assert "mkldnn" not in str(program.graph)
    assert torch.equal(program.module()(x), expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at the first of all
@pytest.mark.parametrize("rows", [24, LARGE])
def test_derivatives_forward_and_many_at_once_are_torchs(rows: int) -> None:
    layer, x = Linear(256, rows), normal(3, 256)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    torch.testing.assert_close(tangent, F.linear(x, layer.weight))
    with forward_ad.dual_level():
        made = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x)))
    assert made.tangent is not None
    torch.testing.assert_close(made.tangent, tangent)
    seen: list[bool] = []

    def probe(x: Tensor) -> Tensor:
        seen.append(by.covers(x, layer.weight))
        return torch.as_tensor(layer(x))

    torch.testing.assert_close(torch.func.vmap(probe)(x), layer(x))
    assert seen == [False]


@torch.no_grad()
@pytest.mark.parametrize("rows", [24, LARGE])
@pytest.mark.parametrize("columns", [128, 255])
def test_tokens_of_another_width_are_refused_as_by_torch(columns: int, rows: int) -> None:
    x, weight = normal(4, columns), matrix(rows, 256)
    for way in (by.linear, lambda x, weight: by.gated(x, weight, weight)):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            way(x, weight)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_put_in_the_place_of_a_gate_is_called(bias: bool) -> None:
    mlp, x = Mlp(64, 96, "silu", bias=bias), normal(5, 64)
    plain = mlp.opened(x)
    torch.testing.assert_close(plain, F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    seen: list[int] = []
    handle = mlp.gate_proj.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(mlp.opened(x), plain)
    assert seen == [1]
    handle.remove()
    with global_hook(seen):
        mlp.opened(x)
    assert seen == [1, 1, 1, 1]  # gate, activation and up
    mlp.act_fn = nn.Tanh()
    torch.testing.assert_close(mlp.opened(x), mlp.gate_proj(x).tanh() * mlp.up_proj(x))


@contextmanager
def global_hook(seen: list[int]) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def test_what_is_put_in_the_place_of_a_gelu_is_called() -> None:
    mlp, x = dit.Mlp(64), normal(5, 64)
    first, last = mlp[0], mlp[2]
    torch.testing.assert_close(mlp(x), last(F.gelu(first(x), approximate="tanh")))
    for other in (nn.ReLU(), nn.GELU()):
        mlp[1] = other
        torch.testing.assert_close(mlp(x), last(other(first(x))))


@pytest.mark.usefixtures("stands_alone")
@torch.no_grad()
@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from([(2, 1), (3, 3), (4, 2)]),
    width=st.sampled_from([8, 16, 64]),  # MKL goes by where numbers lie for others
    length=st.integers(2, 200),
    masked=st.booleans(),
    data=st.data(),
)
def test_a_query_has_the_same_bits_whatever_others_there_are(
    dtype: torch.dtype,
    heads: tuple[int, int],
    width: int,
    length: int,
    masked: bool,
    data: st.DataObject,
) -> None:
    module = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="sdpa"),
        num_key_value_groups=heads[0] // heads[1],
        scaling=width**-0.5,
        training=False,
    )
    query = normal(2, heads[0], length, width, dtype=dtype)
    key, value = (normal(2, heads[1], length, width, dtype=dtype, seed=s) for s in (1, 2))
    mask = None
    if masked:
        mask = normal(2, 1, length, length) > 0
        mask[..., 0] = True
    first = data.draw(st.integers(0, length - 1))
    count = data.draw(st.integers(1, length - first))
    some, row = slice(first, first + count), slice(1, 2)
    shown = None if mask is None else mask[row, :, some]
    alone = attention(module, query[row, :, some], key[row], value[row], shown)
    assert torch.equal(alone, attention(module, query, key, value, mask)[row, some])
