"""Philox, the keying of rows, and the exponential and uniform variates made from its words."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import NoiseKey, exponential_from_bits, gumbel, philox4x32, uniform
from dlm.kernels.noise import POSITION_NOISE, TILE_RACE, TOKEN_RACE, NoiseStream, signed

WORD = 2**32 - 1
words = st.integers(0, WORD)
PINNED = [1058655483, 1044893666, 1059053824, 1034798521]  # bits of `uniform` as first released


def column(values: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def philox(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = column(counter)
    k0, k1 = column(key)
    return [int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))]


def exponential(k: int) -> float:
    """E of one 64-bit word."""
    return float(exponential_from_bits(torch.tensor(k >> 32), torch.tensor(k & WORD)))


def make_key(
    num_rows: int, seed: int = 0, row: int = 0, position: int = 0, draw: int = 0
) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(seed, count * 0 + row, count + position, count * 0 + draw)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD] * 4, [WORD] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: list[int], key: list[int], expected: str
) -> None:
    assert philox(counter, key) == [int(word, 16) for word in expected.split()]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in unbounded integers, from the paper's definition of a round."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & WORD, (p >> 32) ^ d ^ m, p & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return [a, b, c, d]


@settings(deadline=None, max_examples=50)
@given(st.lists(words, min_size=4, max_size=4), st.lists(words, min_size=2, max_size=2))
def test_philox_equals_unbounded_arithmetic(counter: list[int], key: list[int]) -> None:
    assert philox(counter, key) == slow_philox(counter, key)


def test_philox_broadcasts() -> None:
    index, row = torch.arange(5)[None], torch.arange(3)[:, None]
    tag = torch.full_like(row, 7)
    table = philox4x32((index, row, tag, tag), (row, row))
    for i in range(3):
        for j in range(5):
            assert [int(word[i, j]) for word in table] == philox([j, i, 7, 7], [i, i])


@pytest.mark.parametrize("exponent", range(1, 61))
def test_quantiles_near_zero_are_exact(exponent: int) -> None:
    """T2.4: the share of the 2**64 words with E <= 2**-j, by bisection of the monotone map."""
    threshold = 2.0**-exponent
    low, high = -1, 2**64 - 1
    while high - low > 1:
        middle = (low + high) // 2
        if exponential(middle) <= threshold:
            low = middle
        else:
            high = middle
    assert (low + 1) / 2**64 == pytest.approx(-math.expm1(-threshold), rel=2e-7)


@pytest.mark.parametrize("threshold", [1.0, 5.0, 12.0, 16.7, 17.4, 25.0, 40.0])
def test_quantiles_of_late_clocks_are_exact(threshold: float) -> None:
    """The other tail: an E that is infinite at 2**-25 would hand that mass to any competitor."""
    low, high = -1, 2**64
    while high - low > 1:
        middle = (low + high) // 2
        if exponential(middle) <= threshold:
            low = middle
        else:
            high = middle
    assert (2**64 - 1 - low) / 2**64 == pytest.approx(math.exp(-threshold), rel=1e-5)


def test_exponentials_rise_and_stay_finite() -> None:
    edges = [0, 1, 2, 3, 2**24, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2**39, 2**64 - 1]
    ladder = sorted({*edges, *(2**i for i in range(64)), *(2**64 - 2**i for i in range(64))})
    values = [exponential(k) for k in ladder]
    assert values == sorted(values)
    assert values[0] == 2.0**-65
    assert values[-1] == pytest.approx(65 * math.log(2), rel=1e-6)
    assert exponential_from_bits(torch.tensor([5]), torch.tensor([9])).dtype == torch.float32


def test_every_part_of_the_key_changes_the_words() -> None:
    def word(purpose: int = TILE_RACE, index: int = 0, seed: int = 0, **parts: int) -> int:
        stream = make_key(1, seed, **parts).stream()
        high, low = stream.words(purpose, torch.tensor([[index]]))
        return int(high[0, 0]) << 32 | int(low[0, 0])

    seen = [
        word(),
        word(purpose=TOKEN_RACE),
        word(purpose=POSITION_NOISE),
        word(index=1),
        word(seed=1),
        word(seed=-1),
        word(seed=2**32),
        word(row=1),
        word(row=-1),
        word(row=2**32),
        word(row=-(2**63)),
        word(position=1),
        word(draw=1),
    ]
    assert len(set(seen)) == len(seen)
    assert word(seed=-1) == word(seed=2**64 - 1)
    assert word() == word()


def test_words_of_a_row_ignore_the_other_rows() -> None:
    key = make_key(6, seed=5, draw=2)
    order = torch.tensor([4, 1, 1, 5])
    part = NoiseKey(5, key.row[order], key.position[order], key.draw[order])
    index = torch.arange(3)[None]
    whole = key.stream().words(TOKEN_RACE, index)
    some = part.stream().words(TOKEN_RACE, index)
    sliced = key.stream()[2:5].words(TOKEN_RACE, index)
    for half in range(2):
        assert torch.equal(whole[half][order], some[half])
        assert torch.equal(whole[half][2:5], sliced[half])


def test_uniform_is_uniform_and_independent_of_the_draw() -> None:
    n = 20_000
    first, again, later = (uniform(make_key(n, draw=d)) for d in (0, 0, 1))
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert ((first > 0) & (first < 1)).all()
    for sample in (first, later):
        gap = (sample.double().sort().values - (torch.arange(n) + 0.5) / n).abs().max()
        assert float(gap) < 1.95 / math.sqrt(n)  # Kolmogorov, p = 0.001
    correlation = float(torch.corrcoef(torch.stack((first, later)))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(n)


def test_uniform_keeps_resolution_near_zero() -> None:
    small = uniform(make_key(20_000))
    small = small[small < 0.01]
    assert not torch.equal((small * 2**24).round(), small * 2**24)


def test_uniform_keeps_the_bits_it_always_had() -> None:
    assert uniform(make_key(4, seed=3, draw=1)).view(torch.int32).tolist() == PINNED


def test_gumbel_is_gumbel() -> None:
    n = 20_000
    for draw in (0, 1, 7):
        noise = gumbel(make_key(n, draw=draw))
        assert noise.dtype == torch.float32
        assert noise.shape == (n,)
        law = (-(-noise.double().sort().values).exp()).exp()
        assert float((law - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / math.sqrt(n)


def test_position_noise_takes_the_words_it_says() -> None:
    """`uniform` the first and `gumbel` the second word of the counter, and so no word twice."""
    key = make_key(50, seed=9, draw=3)
    high, low = key.stream().words(POSITION_NOISE, torch.zeros(50, 1, dtype=torch.int64))
    flat = (high.double() * 2**32 + low.double()) * 2.0**-64
    torch.testing.assert_close(uniform(key).double(), flat[:, 0], rtol=1e-6, atol=1e-7)
    assert torch.equal(gumbel(key), -exponential_from_bits(high[:, 1], low[:, 1]).log())


def test_variates_of_a_key_and_of_its_draws_are_independent() -> None:
    n, keys = 20_000, [make_key(20_000, draw=draw) for draw in range(3)]
    kinds = [*map(uniform, keys), *((-(-gumbel(key)).exp()).exp() for key in keys)]
    correlations = torch.corrcoef(torch.stack(kinds).double()) - torch.eye(len(kinds))
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(n)
    for first in range(len(kinds)):  # and not only linearly: cells of a 10 x 10 grid
        for second in range(first):
            cell = (kinds[first] * 10).long() * 10 + (kinds[second] * 10).long()
            seen = cell.bincount(minlength=100)
            assert float(((seen - n / 100) ** 2).sum()) / (n / 100) < 99 + 4.5 * math.sqrt(2 * 99)


@pytest.mark.parametrize(("word", "expected"), [(0, 65 * math.log(2)), (WORD, -math.log(45.0546))])
def test_gumbel_reaches_both_tails(
    word: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    extreme = torch.full((1, 2), word)
    monkeypatch.setattr(NoiseStream, "words", lambda *_: (extreme, extreme))
    assert float(gumbel(make_key(1))) == pytest.approx(expected, rel=1e-5)


def test_gumbel_keeps_resolution_near_the_top() -> None:
    """A uniform of 24 bits in -ln(-ln u) has steps of ln 2 at its largest values."""
    high = gumbel(make_key(400_000)).sort().values[-20:]
    assert high.unique().numel() == 20
    assert float(high[-1]) > 9


def test_rows_may_have_seeds_of_their_own() -> None:
    key, index = make_key(4, draw=2), torch.arange(3)[None]
    seeds = [3, -1, 2**64 - 1, 2**63]
    own = replace(key, seed=torch.tensor([signed(seed) for seed in seeds]))
    found = own.stream().words(TOKEN_RACE, index)
    for row, seed in enumerate(seeds):
        alone = replace(key, seed=seed).stream().words(TOKEN_RACE, index)
        assert all(torch.equal(x[row], y[row]) for x, y in zip(found, alone, strict=True))


@pytest.mark.parametrize("seed", [np.int64(-3), np.uint64(2**63 + 3), np.int8(7)])
def test_integers_of_numpy_are_the_same_seeds(seed: Any) -> None:
    found, plain = (make_key(2, seed=each).seeds for each in (seed, int(seed)))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, True, None])
def test_bad_seed_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be an integer in \[-2\*\*63, 2\*\*64\), got"):
        make_key(2, seed=seed)


@pytest.mark.parametrize("name", ["seed", "row", "position", "draw"])
@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(3, dtype=torch.int64)])
def test_bad_key_tensors_are_refused(name: str, bad: Tensor) -> None:
    parts = dict.fromkeys(("seed", "row", "position", "draw"), torch.zeros(2, dtype=torch.int64))
    if name == "row" and bad.shape == (3,):
        name = "position"  # the length of `row` is the rule, not its breach
    with pytest.raises(ValueError, match=f"{name} must be int64 of shape"):
        NoiseKey(**{**parts, name: bad})
