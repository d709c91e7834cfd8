"""The noise of the fused kernels against that of torch. `test_triton_scan.py` runs this file.

Shapes: C contestants.
"""

import os
from itertools import product

import pytest
import torch
import triton
import triton.language as tl

from dlm.kernels import NoiseKey, exponential_from_bits
from dlm.kernels.noise import TILE_RACE, TOKEN_RACE
from dlm.kernels.triton_noise import exponential, first_best, ordered, row_key, value_of, words

# numpy warns where a float32 is meant to overflow or to be NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
SEEDS = (0, 1, -1, 2**63 + 12345678901, -(2**63), 2**64 - 1, 2**31, 2**32)


def test_words_are_those_of_torch() -> None:
    for seed, purpose in product(SEEDS, (TILE_RACE, TOKEN_RACE)):
        row = torch.tensor([0, -7, 2**62 + 2**40 + 3], device=DEVICE)
        key = NoiseKey(seed, row, row % 1000, row % 3)
        high = torch.zeros(3, 256, dtype=torch.int64, device=DEVICE)
        low = torch.zeros_like(high)
        given = (key.seeds, key.row, key.position, key.draw)
        words_kernel[(3,)](*given, high, low, PURPOSE=purpose)
        index = torch.arange(128, device=DEVICE)[None] + 1000
        expected = key.stream().words(purpose, index)
        assert torch.equal(high, expected[0])
        assert torch.equal(low, expected[1])


@triton.jit  # type: ignore[untyped-decorator]
def words_kernel(  # type: ignore[no-untyped-def]
    seed, row, position, draw, high, low, PURPOSE: tl.constexpr
):
    at = tl.program_id(0)
    k0, k1 = row_key(tl.load(seed + at), tl.load(row + at))
    index = 1000 + tl.arange(0, 128)
    x, y = words(PURPOSE, index, tl.load(position + at), tl.load(draw + at), k0, k1)
    tl.store(high + at * 256 + tl.arange(0, 256), x.to(tl.int64))
    tl.store(low + at * 256 + tl.arange(0, 256), y.to(tl.int64))


def test_exponentials_are_those_of_torch() -> None:
    """At both ends, in the middle, and around each power of 2."""
    ends = [0, 1, 2, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    powers = [2**power + more for power in range(2, 64) for more in (-1, 0, 1)]
    bits = (ends + powers + [2**64 - 1 - word for word in powers])[:256]
    bits += [word * 0x9E3779B97F4A7C15 % 2**64 for word in range(256)]
    high = torch.tensor([word >> 32 for word in bits], device=DEVICE)
    low = torch.tensor([word & 0xFFFFFFFF for word in bits], device=DEVICE)
    out = torch.zeros(512, device=DEVICE)
    exponential_kernel[(1,)](high, low, out)
    expected = exponential_from_bits(high, low)
    torch.testing.assert_close(out, expected, rtol=6e-7, atol=0)
    assert (out > 0).all()


@triton.jit
def exponential_kernel(high, low, out):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 512)
    x, y = tl.load(high + at).to(tl.uint32), tl.load(low + at).to(tl.uint32)
    tl.store(out + at, exponential(x, y))


def test_keys_order_floats() -> None:
    inf, nan = float("inf"), float("nan")
    values = [-inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, inf, nan, -nan]
    given = torch.tensor(values + [-5.0] * 4, device=DEVICE)
    keys = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    back, best = torch.zeros_like(given), torch.zeros_like(keys)
    order_kernel[(1,)](given, keys, back, best)
    found = keys.tolist()
    assert found[:12] == sorted(found[:12])
    assert found[4] == found[5]
    assert found[10] == found[11] > found[9]
    assert torch.equal(back[:10], given[:10])
    assert back[10:12].isnan().all()
    assert int(best[0]) == 10, "the lower of two NaN"


@triton.jit
def order_kernel(given, keys, back, best):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 16)
    values = tl.load(given + at)
    key = ordered(values)
    tl.store(keys + at, key)
    tl.store(back + at, value_of(key))
    _, index = first_best(values)
    tl.store(best, index)
