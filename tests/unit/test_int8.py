"""Products of 8-bit integers: bit for bit their reference, row by row, on every processor."""

import os
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import int8

SIZES = ((1, 1), (17, 65), (64, 16), (300, 512), (40, 4096))  # rows and columns of weights


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_it_is_its_reference(rows: int, columns: int, dtype: torch.dtype) -> None:
    whole, scale = int8.quantized(matrix(rows, columns))
    packed, x = int8.packed(whole, scale), matrix(9, columns, 1).to(dtype)
    for bias in (None, matrix(1, rows, 2)[0].to(dtype)):
        made = int8.product(x, packed, bias)
        assert made.dtype == dtype
        assert torch.equal(made, int8.product_reference(x, whole, scale, bias))
    assert torch.equal(int8.unpacked(packed), whole)


@pytest.fixture
def all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference as of a GPU, whatever this processor has."""
    monkeypatch.setattr(int8, "steps", lambda: int8.ACTIVATIONS[0])


@pytest.mark.usefixtures("all_steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_weights_as_they_are_loaded_give_the_same(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    """By torch's product of integers, which is that of a GPU, for few tokens and for many."""
    whole, scale = int8.quantized(matrix(rows, columns))
    x = matrix(40, columns, 1).to(dtype)
    for bias in (None, matrix(1, rows, 2)[0].to(dtype)):
        for tokens in (x[:0], x[:1], x[3:12], x):
            made = int8.product_unpacked(tokens, int8.Matrix(whole, scale, bias))
            assert made.dtype == dtype
            assert torch.equal(made, int8.product_reference(tokens, whole, scale, bias))


@given(
    st.integers(1, 40),
    st.integers(1, 90),
    st.integers(1, 12),
    st.floats(-12, 12),
    st.integers(0, 9),
)
def test_no_value_is_further_off_than_rounding_can_take_it(
    rows: int, columns: int, count: int, magnitude: float, seed: int
) -> None:
    """|error| <= sum_k (s/2 |w| + t/2 |x| + s t / 4), as each factor is off by half a step."""
    weight, x = matrix(rows, columns, seed), matrix(count, columns, seed + 1) * 10**magnitude
    whole, scale = int8.quantized(weight)
    made = int8.product(x, int8.packed(whole, scale)).double()
    own = x.double().abs().amax(-1, keepdim=True) / int8.steps()
    most = own / 2 * weight.double().abs().sum(-1)
    most = most + scale.double() / 2 * x.double().abs().sum(-1, keepdim=True)
    most = most + own * scale.double() / 4 * columns
    exact = x.double() @ weight.double().t()
    assert bool(((made - exact).abs() <= most * (1 + 1e-5)).all())


@given(st.integers(1, 12), st.integers(1, 300), st.integers(0, 5))
def test_a_token_has_the_same_bits_in_every_batch(count: int, columns: int, seed: int) -> None:
    packed = int8.packed(*int8.quantized(matrix(33, columns, seed)))
    x = matrix(count, columns, seed + 1) * torch.logspace(-3, 3, count)[:, None]
    together = int8.product(x, packed)
    for row in range(count):
        assert torch.equal(int8.product(x[row : row + 1], packed)[0], together[row])


def test_steps_are_divided_by_tensors() -> None:
    """As a GPU multiplies by the inverse of a number, and rounds twice."""
    largest = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1e-3
    exact = (largest.double() / 127).float()
    assert torch.equal(int8.steps_of(largest, 127), exact)
    assert not torch.equal(largest * (1 / 127), exact)
    _, scale = int8.quantized(largest[:, None])
    assert torch.equal(scale, exact)
    assert torch.equal(int8.integers(largest[:, None], 127)[1][:, 0], exact)


def test_weights_take_all_steps_of_their_rows() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [1e-20, 1e20, 0.0]])
    whole, scale = int8.quantized(weight)
    assert whole.tolist() == [[0, 0, 0], [64, -127, 32], [0, 127, 0]]
    torch.testing.assert_close(scale * 127, torch.tensor([1e-30, 2.0, 1e20]))


def test_what_is_not_finite_stays_so() -> None:
    """In its own row and no other, so that the engine can tell."""
    packed = int8.packed(*int8.quantized(matrix(8, 16)))
    x = matrix(4, 16, 1)
    x[1, 3], x[2, 0] = float("nan"), float("inf")
    made = int8.product(x, packed)
    whole, scale = int8.quantized(matrix(8, 16))
    for each in (made, int8.product_unpacked(x, int8.Matrix(whole, scale, None))):
        assert each.isfinite().all(-1).tolist() == [True, False, False, True]
        assert not each[1:3].isfinite().any()
    spoilt = matrix(8, 16)
    spoilt[5, 2] = float("nan")
    made = int8.product(matrix(2, 16, 1), int8.packed(*int8.quantized(spoilt)))
    assert made.isfinite().all(0).tolist() == [True] * 5 + [False] + [True] * 2


def test_rows_of_nothing_give_nothing() -> None:
    packed = int8.packed(*int8.quantized(matrix(8, 16)))
    assert int8.product(torch.zeros(2, 16), packed).count_nonzero() == 0
    assert int8.product(torch.zeros(0, 16), packed).shape == (0, 8)


def test_it_goes_by_values_and_not_by_where_they_lie() -> None:
    across, x = matrix(16, 33).t(), matrix(16, 9, 1).t()
    whole, scale = int8.quantized(across)
    assert not whole.is_contiguous()
    packed = int8.packed(whole, scale)
    assert torch.equal(int8.unpacked(packed), whole)
    for each in (x, matrix(9, 32, 1)[:, ::2]):
        assert torch.equal(int8.product(each, packed), int8.product_reference(each, whole, scale))


def test_sums_that_may_exceed_32_bits_are_refused() -> None:
    columns = int8.WIDEST
    whole, scale = torch.full((2, columns), 127, dtype=torch.int8), torch.ones(2)
    made = int8.product(torch.ones(1, columns), int8.packed(whole, scale)) * int8.steps()
    torch.testing.assert_close(made, torch.full((1, 2), 127.0 * columns * int8.steps()))
    with pytest.raises(ValueError, match=r"must have at most 133144 inputs, got 133145"):
        int8.packed(torch.zeros(2, columns + 1, dtype=torch.int8), scale)


def test_it_does_not_go_by_the_default_dtype() -> None:
    packed, x = int8.packed(*int8.quantized(matrix(8, 16))), matrix(5, 16, 1)
    before = int8.grouped(x, [packed, packed], [2, 3])
    torch.set_default_dtype(torch.float64)
    try:
        assert int8.steps.__wrapped__() == int8.steps()
        assert torch.equal(int8.grouped(x, [packed, packed], [2, 3]), before)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, int8.product(x, packed))


def test_a_gradient_is_refused() -> None:
    """What is left of one would be that of the scale alone."""
    packed = int8.packed(*int8.quantized(matrix(8, 16)))
    x = matrix(4, 16, 1).requires_grad_()
    plain = int8.Matrix(*int8.quantized(matrix(8, 16)), None)
    for by in (partial(int8.product, x, packed), partial(int8.product_unpacked, x, plain)):
        with pytest.raises(ValueError, match=r"have no gradient: use torch.no_grad\(\)"):
            by()
    with torch.no_grad():
        assert not int8.product(x, packed).requires_grad


def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = int8.steps.__wrapped__
    monkeypatch.setattr(int8, "exact", lambda most: most == 63)
    assert steps() == 63
    monkeypatch.setattr(int8, "exact", lambda most: False)
    with pytest.raises(ValueError, match="products of 8-bit integers are not exact on this proc"):
        steps()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need a torch with oneDNN, which this one was built wit"):
        steps()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's levels are those of x86")
@pytest.mark.parametrize("level", ["AVX512_CORE", "AVX2", "SSE41"])
def test_a_processor_without_vnni_takes_fewer_steps_and_is_exact(level: str) -> None:
    """Its sums of pairs are cut off at 16 bits, which 127 steps exceed."""
    code = (
        "import torch; from dlm.kernels import int8; torch.manual_seed(0)\n"
        "assert int8.steps() == 63, int8.steps()\n"
        "for rows, columns in ((17, 65), (64, 1024)):\n"
        "    weight = torch.randn(rows, columns).sign()\n"  # the largest sums there are
        "    whole, scale = int8.quantized(weight)\n"
        "    packed = int8.packed(whole, scale)\n"
        "    for count in (1, 7, 40):\n"
        "        x = weight[:1].repeat(count, 1)\n"
        "        reference = int8.product_reference(x, whole, scale)\n"
        "        assert torch.equal(int8.product(x, packed), reference)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
