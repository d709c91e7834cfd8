"""Log-likelihood estimators against enumeration."""

import itertools
import math
from collections.abc import Callable, Iterable

import pytest
import torch

import dlm
from dlm.estimators import chain as estimate_chain
from dlm.estimators import run, stratified_counts
from dlm.models.model import Model
from dlm.scoring import Reader, Scorer

Toy = Callable[..., Model]
MASK = 2
PROMPT, ANSWER = [0], [1, 0, 1, 1]


@pytest.fixture(scope="module")
def model(toy: Toy) -> Model:
    """V = 2 and a mask."""
    table = torch.randn(97, 3, generator=torch.Generator().manual_seed(4)).double()
    return toy(table, mask_id=MASK, eos_id=1, stop_ids=(1,))


def log_probabilities(model: Model, masked: Iterable[int]) -> list[float]:
    """ln p of every true answer token given the others, float64, the mask never an option."""
    row = PROMPT + [MASK if i in set(masked) else token for i, token in enumerate(ANSWER)]
    logits = model.raw_logits(torch.tensor([row]))[0, 1:]
    logits[:, MASK] = -math.inf
    found = logits.log_softmax(-1)[torch.arange(4), torch.tensor(ANSWER)]
    return [float(x) for x in found]


def bound(model: Model) -> float:
    """Mean over all counts and subsets of (n / k) times the masked log-probabilities."""
    by_count = []
    for count in range(1, 5):
        scores = [
            4 / count * sum(log_probabilities(model, subset)[i] for i in subset)
            for subset in itertools.combinations(range(4), count)
        ]
        by_count.append(sum(scores) / len(scores))
    return sum(by_count) / 4


def chain(model: Model, order: Iterable[int]) -> float:
    order = list(order)
    return sum(log_probabilities(model, order[j:])[i] for j, i in enumerate(order))


def test_counts_and_orders_agree(model: Model) -> None:
    """T1.5: exactly-k masking and the average chain rule are one number, ours too."""
    orders = list(itertools.permutations(range(4)))
    expected = sum(chain(model, order) for order in orders) / len(orders)
    assert bound(model) == pytest.approx(expected, abs=1e-12)
    scorer = Scorer(Reader(model, 0.0), PROMPT, ANSWER, 0, 16)
    found = run(estimate_chain(torch.tensor(orders), 16), scorer.scores)
    assert found == pytest.approx(expected, abs=1e-5)
    masks = torch.tensor(list(itertools.product([False, True], repeat=4))[1:])
    subsets = torch.tensor([math.comb(4, int(k)) for k in masks.sum(-1)])
    scores = scorer.scores(masks, masks).sum(-1)
    assert float((scores / masks.sum(-1) / subsets).sum()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("estimator", ["monte_carlo", "chain"])
def test_estimators_converge_to_the_bound(model: Model, estimator: str, batch_size: int) -> None:
    def estimate(samples: int, seed: int) -> float:
        return dlm.log_likelihood(
            model, PROMPT, ANSWER, estimator=estimator, samples=samples, batch_size=batch_size,
            seed=seed,
        )  # fmt: skip

    several = torch.tensor([estimate(64, seed) for seed in range(16)])
    error = float(several.std()) / 4
    assert abs(float(several.mean()) - bound(model)) < 4 * error + 1e-4
    assert float(several.std()) > 0


def test_scorer_equals_the_network(model: Model) -> None:
    masks = torch.tensor(list(itertools.product([False, True], repeat=4))[1:])
    found = Scorer(Reader(model, 0.0), PROMPT, ANSWER, 0, 4).scores(masks, masks)
    for row, mask in zip(found.tolist(), masks.tolist(), strict=True):
        subset = [i for i, on in enumerate(mask) if on]
        expected = log_probabilities(model, subset)
        assert row == pytest.approx([e if on else 0 for e, on in zip(expected, mask, strict=True)],
                                    abs=1e-5)  # fmt: skip


def test_fixed_orders(model: Model) -> None:
    left = dlm.log_likelihood(model, PROMPT, ANSWER, estimator="chain", order="left_to_right")
    assert left == pytest.approx(chain(model, range(4)), abs=1e-5)
    order, rest = [], {0, 1, 2, 3}
    while rest:
        scores = log_probabilities(model, rest)
        best = max(sorted(rest), key=scores.__getitem__)
        order.append(best)
        rest.remove(best)
    sure = dlm.log_likelihood(model, PROMPT, ANSWER, estimator="chain", order="confidence")
    assert sure == pytest.approx(chain(model, order), abs=1e-5)


def test_unlikely_answers_do_not_underflow(toy: Toy) -> None:
    table = torch.zeros(97, 3)
    table[:, 0] = 150.0
    score = dlm.log_likelihood(
        toy(table, mask_id=MASK, eos_id=1, stop_ids=(1,)), [0], [1, 1], estimator="chain"
    )
    assert score == pytest.approx(-300.0)


def test_nan_is_refused(toy: Toy) -> None:
    broken = toy(torch.full((97, 3), torch.nan), mask_id=MASK, eos_id=1, stop_ids=(1,))
    with pytest.raises(ValueError, match="NaN"):
        dlm.log_likelihood(broken, [0], [1], samples=2)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_guidance_mixes_the_logits(golden: Model, scale: float) -> None:
    score = dlm.log_likelihood(
        golden, [4, 5], [6], estimator="chain", order="left_to_right", cfg_scale=scale
    )
    seen, free = (
        golden.raw_logits(torch.tensor([row]))[0, 2] for row in ([4, 5, 511], [511, 511, 511])
    )
    mixed = free + (scale + 1) * (seen - free)
    mixed[511] = -math.inf
    assert score == pytest.approx(float(mixed.log_softmax(-1)[6]), abs=1e-4)


def test_guidance_minus_one_ignores_the_prompt(golden: Model) -> None:
    scores = [
        dlm.log_likelihood(golden, [p], [5, 6], estimator="chain", order="left_to_right",
                           cfg_scale=-1.0)
        for p in (1, 2)
    ]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize(("length", "rows"), [(1, 1), (4, 2), (5, 3), (7, 16), (16, 7)])
def test_counts_are_stratified(length: int, rows: int) -> None:
    """T1.5: over a sweep of the offset every count comes equally often."""
    found = [stratified_counts(k, rows, length).tolist() for k in range(1, length + 1)]
    flat = [count for row in found for count in row]
    assert sorted(set(flat)) == list(range(1, length + 1))
    assert {flat.count(count) for count in set(flat)} == {rows}


def test_batch_size_does_not_change_chains(model: Model) -> None:
    scores = [
        dlm.log_likelihood(model, PROMPT, ANSWER, estimator="chain", samples=8, batch_size=size)
        for size in (1, 5, 64)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9) == pytest.approx(scores[2], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "montecarlo"}, "monte_carlo"),
        ({"order": "confidence_"}, "confidence"),
        ({"samples": 0}, "samples must be an int >= 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an int >= 1, got 2.0"),
        ({"seed": "x"}, "seed must be an int >= -9223372036854775808, got 'x'"),
        ({"seed": 2**64}, "seed must be an int <= 18446744073709551615"),
        ({"cfg_scale": 1e38}, "cfg_scale must be a finite number"),
        ({"answer": []}, "at least one token"),
        ({"prompt": []}, "non-empty"),
        ({"order": "confidence", "estimator": "monte_carlo"}, "order is for estimator='chain'"),
        ({"answer": [1, MASK]}, "mask or unused ids"),
        ({"answer": None}, "answer must be a sequence of ints, got None"),
        ({"answer": "text"}, "tokenizer"),
        ({"answer": [1] * 600}, "512 positions"),
    ],
)
def test_bad_input(model: Model, options: dict[str, object], message: str) -> None:
    arguments = {"prompt": PROMPT, "answer": ANSWER} | options
    with pytest.raises(ValueError, match=message):
        dlm.log_likelihood(model, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_what_closes_a_row_is_given_and_no_part_of_it(toy: Toy, cfg_scale: float) -> None:
    """Drawn left to right, a path has the likelihood of its tokens, guided or not."""
    model = toy(3, suffix=(1, 2))
    out = dlm.generate(
        model, [[4, 3]], decoder="left_to_right", gen_length=5, temperature=1.0,
        cfg_scale=cfg_scale, stop_at_eos=False, block_length=None,
    )  # fmt: skip
    score = dlm.log_likelihood(
        model, [4, 3], out.tokens[0], estimator="chain", order="left_to_right",
        cfg_scale=cfg_scale,
    )  # fmt: skip
    assert out.path_log_probability is not None
    assert score == pytest.approx(out.path_log_probability[0], abs=1e-4)
