"""Orders drawn at random follow their exact laws: first hitting, ancestral, position temperature.

Shapes: B rows, L canvas, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import combinations, permutations, product
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

import dlm
from dlm.decoders import DECODERS, make
from dlm.decoders.alpha import ALPHAS
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits

L, MASK, LEAST = 3, 2, 1e-4  # LEAST: of p-values
ROWS, MANY = 6000, 20_000
LIVE = (0, 1)
Toy = Callable[..., Model]
State = tuple[int, ...]
Law = dict[State, float]


@pytest.fixture(scope="module")
def tiny(toy: Toy) -> Model:
    """Two tokens and the mask, three positions behind the prompt [0]."""
    model: Model = toy(1.5 * torch.randn(97, 3, generator=torch.Generator().manual_seed(5)))
    return model


def predictions(model: Model, temperature: float = 1.0) -> dict[State, list[list[float]]]:
    """The law of each position in every state, float64; the arg max at temperature 0."""
    states = list(product((*LIVE, MASK), repeat=L))
    logits = model.raw_logits(torch.tensor([[0, *state] for state in states]))[:, 1:, :MASK]
    if not temperature:
        best = torch.nn.functional.one_hot(logits.argmax(-1), MASK).double()
        return dict(zip(states, best.tolist(), strict=True))
    return dict(zip(states, (logits.double() / temperature).softmax(-1).tolist(), strict=True))


def masks(state: State) -> list[int]:
    return [i for i, token in enumerate(state) if token == MASK]


def revealed(state: State, where: Sequence[int], p: list[list[float]]) -> Law:
    """The law of the state after some positions drew their tokens from one prediction."""
    law: Law = {}
    for drawn in product(LIVE, repeat=len(where)):
        after = list(state)
        for i, token in zip(where, drawn, strict=True):
            after[i] = token
        law[tuple(after)] = math.prod(p[i][v] for i, v in zip(where, drawn, strict=True))
    return law


def mixed(law: Law, kernel: Callable[[State], list[tuple[float, Law]]]) -> Law:
    after: Law = {}
    for state, chance in law.items():
        for weight, then in kernel(state):
            for end, share in then.items():
                after[end] = after.get(end, 0.0) + chance * weight * share
    return after


def grouped_law(model: Model, sizes: Sequence[int], temperature: float = 1.0) -> Law:
    """First hitting: uniformly random groups of fixed sizes, each from one prediction (2.2)."""
    p = predictions(model, temperature)

    def kernel(size: int, state: State) -> list[tuple[float, Law]]:
        groups = list(combinations(masks(state), size))
        return [(1 / len(groups), revealed(state, group, p[state])) for group in groups]

    law = {(MASK,) * L: 1.0}
    for size in sizes:
        law = mixed(law, partial(kernel, size))
    return law


def masked_share(alpha: str, time: float) -> float:
    """1 - alpha(t)."""
    return {
        "linear": time,
        "log_linear": (1 - 1e-3) * time,
        "cosine": math.cos(math.pi / 2 * (1 - time)),
    }[alpha]


def grid_law(model: Model, steps: int, alpha: str = "linear", temperature: float = 1.0) -> Law:
    """N ancestral steps: each mask is revealed with rho = 1 - (1 - a_s) / (1 - a_t) (P-grid)."""
    p = predictions(model, temperature)

    def kernel(rho: float, state: State) -> list[tuple[float, Law]]:
        open_ = masks(state)
        return [
            (rho**n * (1 - rho) ** (len(open_) - n), revealed(state, group, p[state]))
            for n in range(len(open_) + 1)
            for group in combinations(open_, n)
        ]

    law = {(MASK,) * L: 1.0}
    for k in range(steps):
        rho = 1 - masked_share(alpha, 1 - (k + 1) / steps) / masked_share(alpha, 1 - k / steps)
        rho = 1.0 if k + 1 == steps else rho
        law = mixed(law, partial(kernel, rho))
    return {state: chance for state, chance in law.items() if MASK not in state}


def chi_square(seen: Counter[Any], law: Mapping[Any, float]) -> float:
    """P-value of counts; 0 where something was seen that has no chance."""
    total = sum(seen.values())
    assert math.isclose(sum(law.values()), 1.0, rel_tol=1e-9)
    cells = [key for key, chance in law.items() if chance * total >= 5]
    assert len(cells) > 1
    if any(law.get(key, 0.0) == 0 for key in seen):
        return 0.0
    rest = 1 - sum(law[key] for key in cells)
    counts = [seen[key] for key in cells] + [total - sum(seen[key] for key in cells)]
    expected = [law[key] * total for key in cells] + [rest * total]
    if expected[-1] < 5:  # too few for a cell of their own
        expected[-2:], counts[-2:] = [sum(expected[-2:])], [sum(counts[-2:])]
    return float(stats.chisquare(counts, expected, sum_check=False).pvalue)


def decode(
    model: Model, decoder: str, own: Mapping[str, Any], rows: int = ROWS, **options: Any
) -> dlm.Generation:
    return dlm.generate(
        model, [[0]] * rows, decoder=decoder, decoder_options=own,
        **{"gen_length": L, "block_length": None, "temperature": 1.0, "stop_at_eos": False}
        | options,
    )  # fmt: skip


def ends(out: dlm.Generation) -> Counter[State]:
    return Counter(tuple(row) for row in out.tokens)


def trajectories(out: dlm.Generation) -> list[Any]:
    assert out.trajectory is not None
    return list(out.trajectory)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("steps", "sizes"), [(None, (1, 1, 1)), (2, (2, 1)), (1, (3,))])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_hitting_follows_its_joint_law(
    tiny: Model, steps: int | None, sizes: tuple[int, ...], temperature: float
) -> None:
    """T2.1 and P-fixed groups: chi-square of the end against enumeration."""
    out = decode(tiny, "first_hitting", {}, MANY, steps=steps, temperature=temperature, seed=1)
    assert set(out.forwards) == {len(sizes)}
    assert chi_square(ends(out), grouped_law(tiny, sizes, temperature)) > LEAST


@pytest.mark.slow
def test_the_chi_square_tells_the_laws_apart(tiny: Model) -> None:
    """Negative control: groups of 2 and 1, low confidence and T = 0.9 are not first hitting."""
    law = grouped_law(tiny, (1, 1, 1))
    for decoder, options in (
        ("first_hitting", {"steps": 2}),
        ("first_hitting", {"temperature": 0.9}),
        ("left_to_right", {}),
        ("low_confidence", {}),
        ("ancestral", {"steps": 4}),
    ):
        assert chi_square(ends(decode(tiny, decoder, {}, MANY, **options)), law) < 1e-6


def test_first_hitting_follows_the_law_of_its_paths(tiny: Model) -> None:
    """T2.1: of the order and the tokens together, 48 cells."""
    p = predictions(tiny)
    law: dict[Any, float] = {}
    for order in permutations(range(L)):
        for drawn in product(LIVE, repeat=L):
            state, chance = [MASK] * L, 1 / math.factorial(L)
            for i, token in zip(order, drawn, strict=True):
                chance *= p[tuple(state)][i][token]
                state[i] = token
            law[order, drawn] = chance
    found = trajectories(decode(tiny, "first_hitting", {}, MANY, seed=2, return_trajectory=True))
    paths = ([(c.position, c.token) for c in one.commits] for one in found)
    seen = Counter(tuple(zip(*path, strict=True)) for path in paths)
    assert chi_square(seen, law) > LEAST


def hitting_times(tiny: Model, decoder: str, own: Mapping[str, Any], steps: int | None) -> Tensor:
    options: dict[str, Any] = {"steps": steps, "seed": 3, "return_trajectory": True}
    return torch.tensor([one.times for one in trajectories(decode(tiny, decoder, own, **options))])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("decoder", "steps", "counts"),
    [
        ("first_hitting", None, (1, 2, 3)),
        ("first_hitting", 2, (2, 3)),
        ("ancestral", None, (1, 2, 3)),
    ],
)
def test_hitting_times_follow_their_beta_law(
    tiny: Model, alpha: str, decoder: str, steps: int | None, counts: tuple[int, ...]
) -> None:
    """T2.1: the time of the j-th hit has (1 - alpha(tau)) / (1 - alpha(1)) ~ Beta(L - j + 1, j)."""
    times = hitting_times(tiny, decoder, {"alpha": alpha}, steps)
    assert times.shape == (ROWS, len(counts))
    assert (times.diff(dim=-1) < 0).all()
    whole = masked_share(alpha, 1.0)
    for column, j in zip(times.T.tolist(), counts, strict=True):
        shares = [masked_share(alpha, time) / whole for time in column]
        assert stats.kstest(shares, stats.beta(L - j + 1, j).cdf).pvalue > LEAST
        mean, sigma = (L - j + 1) / (L + 1), stats.beta(L - j + 1, j).std() / ROWS**0.5
        assert abs(sum(shares) / ROWS - mean) < 4 * sigma


def test_hitting_times_say_nothing_of_the_position(tiny: Model) -> None:
    """2.1: the next position is uniform, independent of when."""
    out = decode(tiny, "first_hitting", {}, seed=4, return_trajectory=True)
    firsts = [(one.commits[0].position, one.times[0]) for one in trajectories(out)]
    median = 0.5 ** (1 / L)  # of Beta(L, 1)
    seen = Counter((position, time > median) for position, time in firsts)
    assert chi_square(seen, {(i, half): 1 / 6 for i in range(L) for half in (0, 1)}) > LEAST


def test_tokens_do_not_depend_on_the_schedule_of_times(tiny: Model) -> None:
    """T2.2: alpha changes what the clock shows and nothing else."""
    out = {
        alpha: decode(tiny, "first_hitting", {"alpha": alpha}, 200, return_trajectory=True)
        for alpha in ALPHAS
    }
    linear, cosine, log_linear = (out[alpha] for alpha in ("linear", "cosine", "log_linear"))
    assert linear.tokens == cosine.tokens == log_linear.tokens
    shown = [torch.tensor([t.times for t in trajectories(o)]) for o in (linear, cosine, log_linear)]
    assert (shown[0] != shown[1]).all()
    # The share of 1e-3 that the log-linear schedule never masks cancels.
    torch.testing.assert_close(shown[0], shown[2], rtol=1e-5, atol=0)
    assert [[c[:3] for c in t.commits] for t in trajectories(linear)] == [
        [c[:3] for c in t.commits] for t in trajectories(cosine)
    ]


@pytest.mark.one_in(8)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("steps", "temperature"), [(1, 1.0), (2, 1.0), (4, 1.0), (4, 0.0), (16, 0.6)]
)
def test_ancestral_follows_its_joint_law(
    tiny: Model, alpha: str, cached: bool, steps: int, temperature: float
) -> None:
    """T2.3, P-grid: N steps, more than blanks too, against enumeration, cached or not.

    Noise is keyed by the number of the forward, and the cached form makes fewer forwards: the two
    are equal in law, not token by token. At N = 1 both reveal all at once.
    """
    out = decode(
        tiny, "ancestral", {"alpha": alpha, "cached": cached}, steps=steps,
        temperature=temperature, seed=steps,
    )  # fmt: skip
    assert chi_square(ends(out), grid_law(tiny, steps, alpha, temperature)) > LEAST
    assert max(out.forwards) <= (min(steps, L) if cached else steps)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("steps", [1, 2, 5, 16, 64])
def test_cached_ancestral_skips_empty_times(tiny: Model, alpha: str, steps: int) -> None:
    """2.1: N (1 - (1 - 1/N)^L) forwards on average, by sum_k 1 - (1 - w_k)^L for any grid."""
    out = decode(tiny, "ancestral", {"alpha": alpha}, steps=steps, temperature=0.0, seed=6)
    forwards = torch.tensor(out.forwards).double()
    shares = [masked_share(alpha, 1 - k / steps) / masked_share(alpha, 1.0) for k in range(steps)]
    w = [share - after for share, after in zip(shares, [*shares[1:], 0.0], strict=True)]
    mean = sum(1 - (1 - one) ** L for one in w)
    if alpha != "cosine":
        assert math.isclose(mean, steps * (1 - (1 - 1 / steps) ** L))
    assert abs(float(forwards.mean()) - mean) <= 4 * float(forwards.std()) / ROWS**0.5


def test_ancestral_converges_to_first_hitting_as_one_over_n(tiny: Model) -> None:
    """T2.3: the exact total variation falls by 4 as N grows by 4."""
    limit = grouped_law(tiny, (1, 1, 1))

    @cache
    def distance(steps: int) -> float:
        law = grid_law(tiny, steps)
        return sum(abs(law[state] - limit[state]) for state in limit) / 2

    assert distance(1) > 0.05
    assert distance(256) < 2e-3
    for steps in (16, 64):
        assert 3.5 < distance(steps) / distance(4 * steps) < 4.5


def first_of(model: Model, decoder: str, own: Mapping[str, Any], warmth: float) -> Counter[int]:
    """The position that the first forward of each of many rows committed."""
    settings = Settings(
        decoder=decoder, decoder_options=own, gen_length=4, block_length=None, stop_at_eos=False,
        position_temperature=warmth,
    )  # fmt: skip
    step = next(generation_job(model, [[0]] * 4000, settings).steps())
    assert (step.decision.commit.sum(-1) == 1).all()
    return Counter((step.decision.commit.int().argmax(-1)).tolist())


RANKING = [name for name in DECODERS if "position_noise" in Traits.of(make(name)).needs]
OWN: dict[str, dict[str, Any]] = {"saber": {"n": 1}, "hierarchical": {"low_threshold": 0.9}}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", RANKING)
def test_huge_position_temperature_is_a_uniform_position(toy: Toy, name: str) -> None:
    """9.20: whatever the scores; and without noise one position is best in every row."""
    model = toy(3, scale=0.3)
    own = OWN.get(name, {})
    assert chi_square(first_of(model, name, own, 1e9), dict.fromkeys(range(4), 0.25)) > LEAST
    assert len(first_of(model, name, own, 0.0)) == 1


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["low_confidence", "entropy", "margin", "threshold", "schedule"])
def test_huge_position_temperature_is_a_uniform_order(tiny: Model, name: str) -> None:
    """9.20: all 6 orders of 3 alike, which is the law of first hitting."""
    own = {"threshold": 1.5} if name == "threshold" else {}
    out = decode(tiny, name, own, position_temperature=1e30, seed=7, return_trajectory=True)
    seen = Counter(tuple(c.position for c in one.commits) for one in trajectories(out))
    assert chi_square(seen, dict.fromkeys(permutations(range(L)), 1 / 6)) > LEAST
    assert chi_square(ends(out), grouped_law(tiny, (1, 1, 1))) > LEAST
    with pytest.raises(ValueError, match="position_temperature must be a finite number in"):
        decode(tiny, name, own, position_temperature=1e31)


@pytest.mark.parametrize("warmth", [0.05, 0.3])
def test_position_temperature_draws_without_replacement(tiny: Model, warmth: float) -> None:
    """9.20: pairs of positions by softmax(c / T), then again among those left."""
    p = torch.tensor(predictions(tiny)[(MASK,) * L], dtype=torch.float64)
    weights = (p.amax(-1) / warmth).softmax(-1).tolist()
    law = dict.fromkeys(map(frozenset, combinations(range(L), 2)), 0.0)
    for i, j in permutations(range(L), 2):
        law[frozenset((i, j))] += weights[i] * weights[j] / (1 - weights[i])
    out = decode(
        tiny, "low_confidence", {}, temperature=0.0, position_temperature=warmth, steps=2,
        return_trajectory=True,
    )  # fmt: skip
    seen = Counter(
        frozenset(c.position for c in one.commits if c.step == 0) for one in trajectories(out)
    )
    assert chi_square(seen, law) > LEAST


@pytest.mark.parametrize("name", DECODERS)
def test_position_temperature_is_for_decoders_that_rank(toy: Toy, name: str) -> None:
    """9.20: 0 is what none is, and depends on no seed; others refuse what they would ignore."""
    options: dict[str, Any] = {"gen_length": 9, "block_length": 4, "decoder": name}
    if name not in RANKING:
        with pytest.raises(ValueError, match="position_temperature must be 0"):
            dlm.generate(toy(0), [[1]], position_temperature=0.5, **options)
        return
    plain = dlm.generate(toy(0), [[1], [2, 3]], seed=1, **options)
    for seed in range(3):
        cold = dlm.generate(toy(0), [[1], [2, 3]], seed=seed, position_temperature=0.0, **options)
        assert (cold.tokens, cold.forwards) == (plain.tokens, plain.forwards)


def test_the_decoders_that_do_not_rank_are_these() -> None:
    assert {*DECODERS} - {*RANKING} == {
        "random", "left_to_right", "dilated", "first_hitting", "ancestral", "info_gain",
        "ssd",
    }  # fmt: skip
    for decoder in (make("dream", alg="origin"), make("remdm", variant="cap")):
        with pytest.raises(ValueError, match="position_temperature must be 0"):
            Settings(decoder=decoder, position_temperature=1.0)
