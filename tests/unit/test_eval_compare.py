"""Comparisons of runs: pairs, exact tests against scipy and brute force, intervals that cover."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from dlm.eval.comparison import (
    ALL,
    Comparison,
    compare,
    forwards_ratio,
    labels,
    score_difference,
)
from dlm.eval.comparison_tables import as_json, table
from dlm.eval.folder import Run
from dlm.eval.inference import bca, estimate, mcnemar, resample, sign_flip
from dlm.eval.sample import Sample

SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "task": "gsm8k",
    "task_version": 1,
    "data": {"sha256": "aa"},
    "templates": ["chat"],
    "decoder": "random",
    "decoder_options": {},
}


def sample(template: str, index: int, score: float, **more: Any) -> Sample:
    fields: dict[str, Any] = {
        "task": "gsm8k", "template": template, "id": str(index), "index": index, "prompt": "",
        "prompt_tokens": 1, "output": "", "tokens": [1], "order": [0], "response_tokens": 10,
        "decoded_tokens": 10, "forwards": 5, "query_tokens": 10, "seconds": 0.5, "answer": "",
        "extracted": {"m": None}, "scores": {"m": score}, "score": float(score), "detail": "",
        "seed": 0, "settings": "",
    }  # fmt: skip
    return Sample(**fields | more)


def run(name: str, scores: Mapping[str, Sequence[float]] | Sequence[float], **more: Any) -> Run:
    """A run whose samples have these scores, by template and index, or under one template."""
    listed = dict(scores) if isinstance(scores, Mapping) else {"chat": scores}
    settings = SETTINGS | {"decoder": name, "templates": list(listed)} | more
    samples = [
        sample(template, index, score)
        for template, row in listed.items()
        for index, score in enumerate(row)
    ]
    return Run(Path("runs") / name, settings, "", len(samples), [], samples)


def only(found: Sequence[Comparison]) -> Comparison:
    assert len(found) == 1
    return found[0]


A = [1, 1, 1, 1, 0, 0, 0, 1]
B = [0, 0, 0, 1, 1, 0, 0, 1]


def test_a_pair_of_runs() -> None:
    found = only(compare([run("a", A), run("b", B)]))
    assert (found.baseline, found.other, found.template) == ("a", "b", "chat")
    assert (found.pairs, found.problems, found.left_out) == (8, 8, (0, 0))
    assert found.scores == (5 / 8, 3 / 8)
    assert found.discordant == (3, 1)
    assert found.difference.value == -2 / 8
    assert found.p == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert found.difference.interval is not None
    low, high = found.difference.interval
    assert -1 <= low < -2 / 8 < high <= 1


def test_the_other_way_round_turns_signs_and_counts() -> None:
    one = only(compare([run("a", A), run("b", B)]))
    two = only(compare([run("b", B), run("a", A)]))
    assert two.discordant == one.discordant[::-1]
    assert two.difference.value == 2 / 8
    assert two.p == one.p


def test_samples_are_paired_by_problem_and_not_by_place() -> None:
    first, other = run("a", A), run("b", B)
    shuffled = replace(other, samples=other.samples[::-1])
    same = only(compare([first, shuffled]))
    assert same.discordant == (3, 1)
    fewer = replace(first, samples=[first.samples[k] for k in (6, 0, 4)])
    found = only(compare([fewer, replace(other, samples=other.samples[:6])]))
    assert (found.pairs, found.discordant, found.left_out) == (2, (1, 1), (1, 4))


def test_prompts_that_differ_are_no_pair() -> None:
    one, other = run("a", A), run("b", B)
    other.samples[2] = replace(other.samples[2], prompt="another")
    with pytest.raises(ValueError, match=r"one prompt for a problem: .* differ at problem '2'"):
        compare([one, other])


def test_blanks_of_another_number_are_one_prompt() -> None:
    """How many there are is the tokenizer's to say, and the problem is the same."""
    one, other = run("a", A), run("b", B)
    for each, count in ((one, 3), (other, 12)):
        each.samples[2] = replace(each.samples[2], prompt=f"def f():\n[MASK:{count}]\nreturn x")
    assert only(compare([one, other])).pairs == len(A)
    other.samples[2] = replace(other.samples[2], prompt="def f():\n[MASK:3]\nreturn y")
    with pytest.raises(ValueError, match="one prompt for a problem"):
        compare([one, other])


def test_seconds_are_compared_on_one_machine_alone() -> None:
    start = {"batch_size": 4, "processes": 1, "threads": 1, "machine": "x"}
    one, same = (replace(run(name, A), launches=[start]) for name in "ab")
    assert only(compare([one, same])).seconds.value is not None
    assert only(compare([one, replace(same, launches=[start, start])])).seconds.value is not None
    for more in ({"batch_size": 8}, {"processes": 2}, {"threads": 2}, {"machine": "y"}):
        other = replace(same, launches=[start | more])
        assert only(compare([one, other])).seconds.value is None
    assert only(compare([one, run("b", A, device="gpu")])).seconds.value is None


def test_costs_are_ratios_over_pairs() -> None:
    first, other = run("a", [1, 1]), run("b", [1, 0])
    costs: list[dict[str, Any]] = [
        {"forwards": 4, "response_tokens": 8, "seconds": 1.0},
        {"forwards": 6, "seconds": 3.0},
    ]
    other = replace(
        other, samples=[replace(s, **c) for s, c in zip(other.samples, costs, strict=True)]
    )
    found = only(compare([first, other]))
    assert found.forwards.value == pytest.approx(10 / 10)
    assert found.response_tokens_per_forward.value == pytest.approx((18 / 10) / (20 / 10))
    assert found.seconds.value == pytest.approx(4 / 1)


def test_a_prompt_too_long_for_one_model_costs_nothing() -> None:
    first, other = run("a", [1, 1, 1]), run("b", [1, 0, 0])
    first = replace(first, samples=[replace(s, forwards=2 + s.index) for s in first.samples])
    empty: dict[str, Any] = {"forwards": 0, "response_tokens": 0, "seconds": 0.0}
    left = [replace(s, **empty) if s.index == 2 else s for s in other.samples]
    found = only(compare([first, replace(other, samples=left)]))
    assert found.scores == (1, 1 / 3)
    assert found.forwards.value == pytest.approx(10 / 5)
    assert found.seconds.value == pytest.approx(1)
    none = [replace(s, **empty) for s in other.samples]
    found = only(compare([first, replace(other, samples=none)]))
    assert found.forwards.value is None
    assert table([found])[1][0][-1] == "-"


def test_runs_that_vary_together_leave_nothing_uncertain() -> None:
    """What varies from problem to problem, but not between the runs, is no uncertainty."""
    first, other = run("a", A * 5), run("b", A * 5)
    first = replace(first, samples=[replace(s, forwards=2 + 2 * s.index) for s in first.samples])
    half = [replace(s, forwards=1 + s.index) for s in other.samples]
    found = only(compare([first, replace(other, samples=half)]))
    assert found.forwards.value == 0.5
    assert found.forwards.interval is None
    assert (found.difference.value, found.difference.interval) == (0, None)
    assert found.p == 1


def test_pairs_tell_more_than_runs_apart() -> None:
    """Of 100 problems, 50 too hard for both: the interval is that of the 10 that differ."""
    first = run("a", [1] * 50 + [0] * 50)
    other = run("b", [1] * 50 + [1] * 10 + [0] * 40)
    interval = only(compare([first, other])).difference.interval
    assert interval is not None
    assert interval[0] == pytest.approx(0.05, abs=0.015)
    assert interval[1] == pytest.approx(0.17, abs=0.015)


def test_templates_of_a_problem_move_together() -> None:
    """The same pairs under three templates are no more evidence than under one."""
    names = ("x", "y", "z")
    one = only(compare([run("a", {"x": A * 4}), run("b", {"x": B * 4})]))
    found = compare([run("a", dict.fromkeys(names, A * 4)), run("b", dict.fromkeys(names, B * 4))])
    assert [each.template for each in found] == [*names, ALL]
    assert (found[-1].pairs, found[-1].problems) == (96, 32)
    assert found[-1].discordant == (36, 12)
    assert found[-1].difference == one.difference
    assert found[-1].p == pytest.approx(one.p)
    assert (found[-1].p or 0) > mcnemar(36, 12)


def test_templates_that_one_run_lacks_are_left_out() -> None:
    first, other = run("a", {"x": A, "y": A}), run("b", {"y": B, "z": B})
    found = compare([first, other])
    assert [each.template for each in found] == ["y", ALL]
    assert found[0].left_out == (0, 0)
    assert found[1].left_out == (8, 8)
    assert found[1].p == found[0].p


def test_every_run_meets_the_first() -> None:
    found = compare([run("a", A), run("b", B), run("c", A)])
    assert [(each.baseline, each.other) for each in found] == [("a", "b"), ("a", "c")]


def test_a_seed_decides_the_intervals() -> None:
    runs = [run("a", A * 3), run("b", B * 3)]
    assert compare(runs) == compare(runs)
    few = [compare(runs, resamples=50, seed=seed)[0].difference.interval for seed in range(4)]
    assert len(set(few)) > 1
    both = compare([*runs, run("c", A * 3)])
    assert both[0] == compare(runs)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "math"}, "one task, got 'gsm8k' in runs/a and 'math' in runs/b"),
        ({"task_version": 2}, "one task version"),
        ({"data": {"sha256": "bb"}}, "one data"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare([run("a", A), run("b", B, **change)])


def test_nothing_to_compare_is_refused() -> None:
    first, other = run("a", A), run("b", B)
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        compare([first])
    with pytest.raises(ValueError, match="samples that a and b both have"):
        compare([first, replace(other, samples=[])])
    with pytest.raises(ValueError, match="runs must differ"):
        compare([first, other, first])
    with pytest.raises(ValueError, match="resamples must be an int >= 1"):
        compare([first, other], resamples=0)


def test_names_tell_runs_apart() -> None:
    one, two = run("a", A, decoder_options={"k": 1}), run("a", A, decoder_options={"k": 2})
    assert labels([replace(one, folder=Path("p")), two]) == ["a(k=1)", "a(k=2)"]
    again = [replace(one, folder=Path(name)) for name in ("p/x", "p/y", "q/y")]
    assert labels(again[:2]) == ["a(k=1) [x]", "a(k=1) [y]"]
    told = labels(again)
    assert told[0] == "a(k=1) [x]"
    assert told[1].endswith("p/y]")
    assert told[2].endswith("q/y]")
    long = run("a", A, decoder_options={"k": "two\nlines" * 30})
    assert len(labels([long])[0]) == 60
    assert "\n" not in labels([long])[0]


# Exact tests


@pytest.mark.parametrize("count", range(14))
def test_mcnemar_is_the_binomial_test(count: int) -> None:
    for b in range(count + 1):
        expected = stats.binomtest(b, count).pvalue if count else 1.0
        assert mcnemar(b, count - b) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_many_pairs() -> None:
    assert mcnemar(500, 620) == pytest.approx(stats.binomtest(500, 1120).pvalue, rel=1e-9)
    assert 0 <= mcnemar(0, 5000) < 1e-300


def flips(differences: Sequence[int]) -> float:
    signs = list(product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    return sum(value >= abs(sum(differences)) for value in sums) / len(signs)


def test_sign_flips_by_brute_force() -> None:
    random = np.random.default_rng(0)
    for size in range(1, 10):
        differences = [int(x) for x in random.integers(-3, 4, size)]
        assert sign_flip(differences) == pytest.approx(flips(differences), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 1), (7, 7), (2, 9)])
def test_sign_flips_of_single_pairs_are_mcnemar(b: int, c: int) -> None:
    assert sign_flip([-1] * b + [1] * c + [0] * 4) == pytest.approx(mcnemar(b, c), rel=1e-12)


# Intervals


def totals(pairs: Sequence[tuple[float, float]], forwards: Sequence[float]) -> Any:
    rows = [[1, a, b, 10, f, 1, 1, 1, 1] for (a, b), f in zip(pairs, forwards, strict=True)]
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize("statistic", [score_difference, forwards_ratio])
def test_intervals_are_those_of_scipy(statistic: Callable[[Any], Any]) -> None:
    random = np.random.default_rng(3)
    forwards = random.lognormal(2, 1, 40).tolist()
    sums = totals(
        list(zip(random.random(40) < 0.5, random.random(40) < 0.7, strict=True)), forwards
    )
    sums[:, 3] = random.integers(5, 20, 40)
    found = estimate(statistic, sums, resample(sums, 20_000, 0))

    def whole(*columns: Any, axis: int = -1) -> Any:
        return statistic(np.stack([c.sum(axis) for c in columns], axis=-1))

    told = stats.bootstrap(
        [*sums.T], whole, paired=True, vectorized=True, n_resamples=20_000, method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.interval is not None
    width = told.high - told.low
    assert found.interval[0] == pytest.approx(told.low, abs=0.06 * width)
    assert found.interval[1] == pytest.approx(told.high, abs=0.06 * width)


def test_few_resamples_on_one_side_do_not_break_the_interval() -> None:
    low, high = bca(5.0, np.arange(1.0, 5.0), np.array([1.0, 2.0, 6.0]))
    assert 1 <= low <= high <= 4


def test_a_problem_alone_has_no_interval() -> None:
    found = only(compare([run("a", [1]), run("b", [0])]))
    assert (found.difference.value, found.difference.interval) == (-1, None)


def test_resamples_draw_as_many_problems_as_there_are() -> None:
    sums = totals([(0, 1)] * 7, [1] * 7)
    drawn = resample(sums, 1000, 0)
    assert drawn.shape == (1000, 9)
    assert (drawn[:, 0] == 7).all()
    assert (drawn[:, 1] == 0).all()


def test_intervals_cover_what_they_should() -> None:
    """Of 300 experiments the true difference lies in about 95% of the intervals: 3 sigma, 3.8%."""
    random = np.random.default_rng(0)
    normal = NormalDist()
    first, other = 0.5, 0.65
    cover = []
    for _ in range(300):
        skill = random.normal(size=(60, 1))
        luck = random.normal(size=(60, 2))
        levels = np.array([normal.inv_cdf(first), normal.inv_cdf(other)])
        right = np.sqrt(0.5) * (skill + luck) < levels
        sums = totals([(a, b) for a, b in right.tolist()], [1] * 60)
        found = estimate(score_difference, sums, resample(sums, 600, 0))
        assert found.interval is not None
        low, high = found.interval
        cover.append(low - 1e-9 <= other - first <= high + 1e-9)
    assert 0.912 <= float(np.mean(cover)) <= 0.988


# What is printed


def test_a_table_has_a_cell_a_column() -> None:
    found = compare([run("a", {"x": A, "y": A}), run("b", {"x": B, "y": A}), run("c", {"x": A})])
    head, rows = table(found)
    assert head[0] == "against a"
    assert {len(row) for row in rows} == {len(head)}
    row = dict(zip(head, rows[0], strict=True))
    assert (row["against a"], row["template"], row["n"]) == ("b", "x", "8")
    assert row["score"] == "62.5% -> 37.5%"
    assert (row["points"], row["only one right"], row["p"]) == ("-25.0", "3 : 1", "0.625")
    assert row["forwards, ratio"] == "1.00"
    assert dict(zip(head, rows[-1], strict=True))["left out"] == "8 + 0"


def test_json_holds_every_figure() -> None:
    found = json.loads(json.dumps(as_json(only(compare([run("a", A), run("b", B)])))))
    assert found["only_right"] == {"baseline": 3, "other": 1}
    assert found["difference"]["value"] == -0.25
    assert len(found["difference"]["interval"]) == 2
    assert found["forwards"] == {"value": 1.0, "interval": None}
    assert found["p"] == 0.625
