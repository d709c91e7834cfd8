"""The law of the samples: chi-square, tails that float32 noise loses, and what must not matter."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import TILE, NoiseKey, categorical, exponential_from_bits, tiles, token_statistics
from dlm.kernels.race import race, race_tiles, race_tokens
from dlm.kernels.tiles import TiledLogits

SIZES = (2, 7, 1023, 1024, 1025, 3000)
FILTERS: tuple[Mapping[str, float], ...] = (
    {"top_k": 3},
    {"top_k": 700},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"top_k": 40, "top_p": 0.7},
)


def make_key(num_rows: int, seed: int = 0) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(seed, count // 16, count % 16, torch.zeros_like(count))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def p_value(counts: Tensor, p: Tensor) -> float:
    """Chi-square p-value; tokens expected fewer than 5 times are pooled by size."""
    n = float(counts.sum())
    order = p.argsort(descending=True)
    expected, seen = (p * n)[order].double(), counts[order].double()
    alone = expected >= 5
    pooled = torch.cat((expected[alone], expected[~alone].sum()[None]))
    found = torch.cat((seen[alone], seen[~alone].sum()[None]))
    if pooled[-1] < 5:  # the pool is itself too small: join the smallest lone token
        pooled = torch.cat((pooled[:-2], pooled[-2:].sum()[None]))
        found = torch.cat((found[:-2], found[-2:].sum()[None]))
    if len(pooled) == 1:
        return 1.0 if abs(float(found[0]) - float(pooled[0])) < 1e-6 * n else 0.0
    statistic = ((found - pooled) ** 2 / pooled).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(pooled) - 1) / 2).double(), statistic / 2)
    )


def counts_of(logits: Tensor, num_rows: int, temperature: float, **options: float) -> Tensor:
    """How often each token is drawn from one row of logits."""
    rows = logits.expand(num_rows, -1)
    key = make_key(num_rows)
    sampled = token_statistics(rows, (), temperature=temperature, key=key, **options).sampled  # type: ignore[arg-type]
    return sampled.bincount(minlength=logits.shape[-1])


def kept_exactly(p: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The law after top-k and then top-p, written token by token."""
    order = sorted(range(len(p)), key=lambda i: (-float(p[i]), i))[:top_k]
    total, running, kept = float(p[order].sum()), 0.0, []
    for token in order:
        if top_p is not None and running >= top_p * total:
            break
        kept.append(token)
        running += float(p[token])
    law = torch.zeros_like(p)
    law[kept] = p[kept]
    return law / law.sum()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_softmax(vocabulary: int, temperature: float) -> None:
    logits = 2 * torch.randn(vocabulary, generator=seeded(vocabulary))
    counts = counts_of(logits, 4000 if vocabulary > 10 else 20_000, temperature)
    assert p_value(counts, (logits.double() / temperature).softmax(0)) > 1e-3


def test_chi_square_notices_a_wrong_law() -> None:
    logits = 2 * torch.randn(1025, generator=seeded(1025))
    counts = counts_of(logits, 4000, 1.0)
    assert p_value(counts, (logits.double() / 1.2).softmax(0)) < 1e-6


@pytest.mark.one_in(4)
@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_filtered_law(options: Mapping[str, float], temperature: float) -> None:
    logits = 2 * torch.randn(1025, generator=seeded(3))
    logits[::2] = logits[::2].round()  # ties, some of them at the cut
    p = kept_exactly((logits.double() / temperature).softmax(0), **options)  # type: ignore[arg-type]
    counts = counts_of(logits, 4000, temperature, **options)
    assert counts[p == 0].sum() == 0
    assert p_value(counts, p) > 1e-3


@pytest.mark.one_in(5)
@pytest.mark.parametrize("options", [{}, *FILTERS])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_scaled_and_filtered_law(
    options: Mapping[str, float], temperature: float
) -> None:
    """Rows of two scales side by side: each follows its own law, with its own nucleus."""
    logits = 2 * torch.randn(1025, generator=seeded(3))
    logits[::2] = logits[::2].round()  # ties, some of them at the cut
    scale = torch.tensor([0.5, 1.75]).repeat(4000)
    sampled = token_statistics(
        logits.expand(8000, -1), (), temperature=temperature, key=make_key(8000), scale=scale,
        **options,  # type: ignore[arg-type]
    ).sampled  # fmt: skip
    for start, factor in enumerate((0.5, 1.75)):
        counts = sampled[start::2].bincount(minlength=1025)
        whole = (logits.double() * factor / temperature).softmax(0)
        p = kept_exactly(whole, **options)  # type: ignore[arg-type]
        assert counts[p == 0].sum() == 0
        assert p_value(counts, p) > 1e-3


@pytest.mark.parametrize(("gap", "num_rows"), [(15.0, 20_000), (17.5, 60_000), (20.0, 300_000)])
def test_tail_keeps_its_mass(gap: float, num_rows: int) -> None:
    check_tail(gap, num_rows)


@pytest.mark.slow
def test_farther_tail_keeps_its_mass() -> None:
    check_tail(22.0, 1_000_000)


def check_tail(gap: float, num_rows: int) -> None:
    """T2.5 by tiles: a head alone in its tile and 65,536 tail tokens `gap` below it."""
    logits = torch.full((65_536 + TILE,), -gap)
    logits[:TILE] = -torch.inf
    logits[0] = 0.0
    mass = logits.view(-1, TILE).exp().sum(1)
    winner = race_tiles(mass.expand(num_rows, -1), make_key(num_rows).stream())
    tail = 65_536 * math.exp(-gap)
    mean = num_rows * tail / (1 + tail)
    assert abs(int((winner != 0).sum()) - mean) < 4 * math.sqrt(mean)


@pytest.mark.parametrize(
    ("gap", "num_rows"), [(15.0, 60_000), (17.5, 200_000), (20.0, 400_000), (22.0, 1_000_000)]
)
def test_our_noise_keeps_the_tail_of_a_flat_race(gap: float, num_rows: int) -> None:
    """T2.5 in one heat, where tiles do not help: a tail token wins only with its top 16 bits 0, so
    just those words are drawn, as a Poisson number of (row, token) pairs."""
    source = seeded(1)

    def clocks(count: int, top: int) -> Tensor:
        high = torch.randint(top, (count,), generator=source)
        return exponential_from_bits(high, torch.randint(2**32, (count,), generator=source))

    head = clocks(num_rows, 2**32)
    pairs = int(torch.poisson(torch.tensor(65_536 * num_rows / 2**16), generator=source))
    row = torch.randint(num_rows, (pairs,), generator=source)
    wins = math.exp(-gap) / clocks(pairs, 2**16) > 1 / head[row]
    tail = 65_536 * math.exp(-gap)
    mean = num_rows * tail / (1 + tail)
    assert abs(len(set(row[wins].tolist())) - mean) < 4 * math.sqrt(mean)


@pytest.mark.parametrize(("gap", "num_rows"), [(17.5, 60_000), (20.0, 300_000), (22.0, 1_000_000)])
def test_float32_noise_loses_the_tail(gap: float, num_rows: int) -> None:
    """Negative control of T2.5: uniforms of 24 bits, winning end at 1, fail the same criterion."""
    source = seeded(0)
    head = -torch.rand(num_rows, generator=source).log()
    ceiling = -math.log(-math.log1p(-(2.0**-24)))  # of the Gumbel noise that 24 bits can express
    open_rows = head[-gap + ceiling > -head.log()]  # in the others no tail token can win
    hits = 0
    for score in (-open_rows.log()).tolist():
        best = float((-torch.rand(65_536, generator=source).log()).min())
        hits += -gap - math.log(best) > score
    mean = num_rows * 65_536 * math.exp(-gap)
    assert hits < mean - 4 * math.sqrt(mean)


@pytest.mark.parametrize("exponent", [30, 40, 50])
@pytest.mark.parametrize("rival", [2**20, 2**62, 2**63 + 12345, 2**64 - 2**30, 2**64 - 1])
def test_rare_token_wins_at_the_exact_word(exponent: int, rival: int) -> None:
    """T2.6: with injected words, token 2 of mass 2**-j wins in just its share of the 2**64."""
    logits = torch.tensor([[0.0, -exponent * math.log(2)]])
    mass = logits.exp()

    def wins(k: int) -> bool:
        high = torch.tensor([[rival >> 32, k >> 32]])
        low = torch.tensor([[rival & 0xFFFFFFFF, k & 0xFFFFFFFF]])
        return bool(race(mass, high, low) == 1)

    low, high = -1, 2**64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wins(middle) else (low, middle)
    late = 2**64 - rival - 0.5 if rival >= 2**63 else 0.0
    clock = -math.log(late / 2**64) if late else -math.log1p(-(rival + 0.5) / 2**64)
    expected = -math.expm1(-math.exp(float(logits[0, 1])) * clock) * 2**64
    assert low + 1 == pytest.approx(expected, rel=1e-5, abs=0.51)


def test_masks_do_not_truncate_the_tokens() -> None:
    """T2.7: Zipf tokens race MASK at reveal probability 1e-3; their entropy survives."""
    p, num_rows, reveal = zipf(), 400_000, 1e-3
    vocabulary = len(p)
    logits = torch.cat(((p * reveal).log(), torch.tensor([1 - reveal]).double().log())).float()
    width = tiles.TILE
    mass = torch.nn.functional.pad(logits.exp(), (0, width - 1)).view(-1, width).sum(1)
    key = make_key(num_rows)
    tile = race_tiles(mass.expand(num_rows, -1), key.stream())
    shown = (tile != vocabulary // width).nonzero()[:, 0]
    assert abs(len(shown) - num_rows * reveal) < 4 * math.sqrt(num_rows * reveal)
    rows = TiledLogits.of(logits.expand(len(shown), -1), None)
    noise = NoiseKey(0, key.row[shown], key.position[shown], key.draw[shown]).stream()
    tokens = race_tokens(rows, tile[shown], 1.0, None, noise)
    assert abs(surprisal_score(tokens, p)) < 3


def test_float32_noise_truncates_tokens_that_race_a_mask() -> None:
    """Negative control of T2.7. A token can win only among the top 2**-10 of its uniforms, so the
    control draws just those, as a Poisson number of (row, token) pairs a row."""
    p, num_rows, reveal = zipf(), 300_000, 1e-3
    source, shown = seeded(0), []
    for _ in range(0, num_rows, 50_000):
        mask = (1 - reveal) / -torch.rand(50_000, generator=source).log()
        pairs = int(torch.poisson(torch.tensor(50_000 * len(p) / 2**10), generator=source))
        row = torch.randint(50_000, (pairs,), generator=source)
        token = torch.randint(len(p), (pairs,), generator=source)
        u = 1 - (torch.randint(2**14, (pairs,), generator=source) + 1) * 2.0**-24
        score = (p * reveal).float()[token] / -u.float().log()
        best = mask.scatter_reduce(0, row, score, "amax")
        shown.append(token[(score == best[row]) & (score > mask[row])])
    tokens = torch.cat(shown)
    assert len(tokens) < num_rows * reveal - 4 * math.sqrt(num_rows * reveal)
    assert surprisal_score(tokens, p) < -6


def zipf() -> Tensor:
    p = 1 / torch.arange(1, 49 * TILE + 1).double()
    return p / p.sum()


def surprisal_score(tokens: Tensor, p: Tensor) -> float:
    """Standard errors between the mean of -ln p over samples and the entropy of p."""
    surprisal = -p.log()
    entropy = float((p * surprisal).sum())
    spread = math.sqrt(float((p * (surprisal - entropy) ** 2).sum()) / len(tokens))
    return (float(surprisal[tokens].mean()) - entropy) / spread


def draw(logits: Tensor, key: NoiseKey, **options: float) -> Tensor:
    return categorical(logits, temperature=0.9, key=key, **options)[0]  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_row_does_not_depend_on_its_batch(data: st.DataObject) -> None:
    """T2.8: subsets, repeats and shuffles of the rows give the same tokens and probabilities."""
    vocabulary = data.draw(st.sampled_from((5, 1024, 2500)))
    options = data.draw(st.sampled_from(({}, *FILTERS)))
    order = torch.tensor(data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=50)))
    logits = 2 * torch.randn(40, vocabulary, generator=seeded(8))
    key = make_key(40, data.draw(st.integers(-(2**63), 2**64 - 1)))
    some = NoiseKey(key.seed, key.row[order], key.position[order], key.draw[order])
    whole = categorical(logits, temperature=0.9, key=key, **options)  # type: ignore[arg-type]
    part = categorical(logits[order], temperature=0.9, key=some, **options)  # type: ignore[arg-type]
    assert torch.equal(whole[0][order], part[0])
    assert torch.equal(whole[1][order], part[1])


@pytest.mark.parametrize("options", [{}, *FILTERS])
@pytest.mark.parametrize("budget", [1, 5000, 1 << 14])
def test_the_block_budget_does_not_change_samples(
    monkeypatch: pytest.MonkeyPatch, options: Mapping[str, float], budget: int
) -> None:
    logits, key = 2 * torch.randn(60, 2500, generator=seeded(4)), make_key(60)
    expected = draw(logits, key, **options)
    monkeypatch.setattr(tiles, "CPU_BLOCK", budget)
    assert torch.equal(draw(logits, key, **options), expected)


def test_seeds_repeat_and_differ() -> None:
    logits = torch.zeros(64, 2000)
    first, again, other = (draw(logits, make_key(64, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.9


@pytest.mark.parametrize("vocabulary", SIZES)
def test_temperature_near_zero_is_the_arg_max(vocabulary: int) -> None:
    logits = torch.randn(50, vocabulary, generator=seeded(2))
    key = make_key(50)
    for temperature in (0.0, 5e-324, 1e-30, 1e-7):
        sampled = categorical(logits, temperature=temperature, key=key)[0]
        assert torch.equal(sampled, logits.argmax(1))


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e6, 1e308])
@pytest.mark.parametrize("vocabulary", [3, 1025])
def test_minus_infinity_is_never_drawn(temperature: float, vocabulary: int) -> None:
    logits = torch.randn(400, vocabulary, generator=seeded(5))
    banned = torch.rand(400, vocabulary, generator=seeded(6)) < 0.9
    banned[:, 1] = False
    logits.masked_fill_(banned, -torch.inf)
    suppressed = torch.arange(vocabulary) == 0
    for options in ({}, *FILTERS):
        sampled, probability = categorical(
            logits,
            temperature=temperature,
            suppressed=suppressed,
            key=make_key(400),
            **options,  # type: ignore[arg-type]
        )
        assert not banned.gather(1, sampled[:, None]).any()
        assert (sampled != 0).all()
        assert (probability > 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e308])
@pytest.mark.parametrize("only", [0, 1023, 1024, 2047])
def test_the_only_finite_logit_is_drawn(temperature: float, only: int) -> None:
    logits = torch.full((30, 2048), -torch.inf)
    logits[:, only] = -50.0
    sampled, probability = categorical(logits, temperature=temperature, key=make_key(30))
    assert (sampled == only).all()
    assert (probability == 1).all()


def test_a_row_without_finite_logits_is_uniform() -> None:
    suppressed = torch.ones(1500, dtype=torch.bool)
    suppressed[[3, 700, 1100, 1499]] = False
    rows = torch.full((1, 1500), -torch.inf).expand(4000, -1)
    for temperature in (0.3, 1.0):
        sampled, probability = categorical(
            rows, temperature=temperature, suppressed=suppressed, key=make_key(4000)
        )
        assert p_value(sampled.bincount(minlength=1500), (~suppressed).double() / 4) > 1e-3
        assert (probability == 0.25).all()
    assert (categorical(rows[:2], temperature=0.0, suppressed=suppressed)[0] == 3).all()


def test_clocks_are_never_infinite() -> None:
    """An E of infinity would let a lower token of mass 0 tie with the only one, and win."""
    last = torch.tensor([[0, 0xFFFFFFFF]])
    assert exponential_from_bits(last, last).isfinite().all()
    assert int(race(torch.tensor([[0.0, 1.0]]), last, last)) == 1
