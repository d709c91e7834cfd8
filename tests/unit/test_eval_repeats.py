"""Several samples of a problem: pass@k and majority votes by brute force, and what is resampled."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlm.decoders import Random
from dlm.decoders.artefact import ScheduleArtefact
from dlm.eval.comparison import ALL, METHODS, compare
from dlm.eval.comparison_tables import as_json, contrast_table, table
from dlm.eval.folder import Run
from dlm.eval.inference import bca, wilson
from dlm.eval.plan import check_samples, choose_options, draws
from dlm.eval.repeats import (
    DEFINITIONS,
    chosen,
    definitions,
    majority,
    measures_of,
    pass_at_k,
    usual,
)
from dlm.eval.sample import Sample
from dlm.eval.score import score
from dlm.eval.summary import Row, figure_cells, summarise
from dlm.eval.task import Check, Problem
from dlm.eval.tasks import TASKS

SETTINGS: dict[str, Any] = {
    "task": "sums", "task_version": 1, "data": {"sha256": "aa"}, "templates": ["chat"],
    "decoder_options": {}, "device": "cpu", "dtype": "float32",
}  # fmt: skip


def sample(index: int, repeat: int, score: float, **more: Any) -> Sample:
    fields: dict[str, Any] = {
        "task": "sums", "template": "chat", "id": str(index), "index": index, "repeat": repeat,
        "prompt": "", "prompt_tokens": 1, "output": "", "tokens": [1], "order": [0],
        "response_tokens": 10, "decoded_tokens": 10, "forwards": 5, "query_tokens": 10,
        "seconds": 0.5, "answer": "", "extracted": {"m": None}, "scores": {"m": score},
        "score": float(score), "vote": str(score), "detail": "", "seed": 0, "settings": "",
    }  # fmt: skip
    return Sample(**fields | more)


def run(name: str, scores: Sequence[Sequence[float]], **more: Any) -> Run:
    """A run whose samples have these scores, by problem and number."""
    samples = [
        sample(index, repeat, score)
        for index, row in enumerate(scores)
        for repeat, score in enumerate(row)
    ]
    repeats = max(map(len, scores))
    settings = SETTINGS | {"decoder": name} | more
    return Run(Path("runs") / name, settings, "", len(scores), [], samples, repeats)


def drawn(seed: int, problems: int, samples: int, right: float = 0.4) -> list[list[float]]:
    random = np.random.default_rng(seed)
    skill = random.beta(2 * right, 2 * (1 - right), (problems, 1))
    return [[float(each) for each in row] for row in random.random((problems, samples)) < skill]


def only(run: Run, **options: Any) -> Row:
    (row,) = summarise(run, **options)
    return row


# pass@k


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for right in range(samples + 1):
        scores = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(combinations(scores, k))
            expected = sum(any(each) for each in subsets) / len(subsets)
            assert pass_at_k(samples, right, k) == pytest.approx(expected, rel=1e-15)


def test_pass_at_k_has_no_bias() -> None:
    """Its mean over all outcomes of n samples, each right with chance p, is 1 - (1 - p)^k."""
    p, samples = 0.3, 6
    for k in range(1, samples + 1):
        mean = sum(
            p ** sum(each) * (1 - p) ** (samples - sum(each)) * pass_at_k(samples, sum(each), k)
            for each in product((0, 1), repeat=samples)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


def test_pass_at_k_of_many_samples() -> None:
    """A product of n - c factors, as the authors' code takes, in the range where it is exact."""
    expected = 1 - np.prod(1 - 1000 / np.arange(100_000 - 3 + 1, 100_000 + 1))
    assert pass_at_k(100_000, 3, 1000) == pytest.approx(expected, rel=1e-12)
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(2000, 1999, 1) == 1999 / 2000
    assert pass_at_k(1000, 1000, 1000) == 1.0
    assert pass_at_k(1000, 0, 1000) == 0.0


@pytest.mark.parametrize("given", [(0, 0, 1), (4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_what_is_no_pass_at_k_is_refused(given: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be an int"):
        pass_at_k(*given)


def test_the_usual_k_are_powers_of_two_and_all() -> None:
    assert [usual(n) for n in (1, 2, 3, 8, 10)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10]
    ]  # fmt: skip
    assert chosen([], 4) == [1, 2, 4]
    assert chosen([10, 3, 3], 5) == [1, 3]


# Majority votes


def vote(text: str | None, score: float = 0.0) -> Sample:
    return sample(0, 0, score, vote=text)


def test_the_answer_with_most_votes_counts() -> None:
    right, wrong, none = vote("7", 1.0), vote("8"), vote(None)
    assert majority([right, wrong, right], 3) == 1.0
    assert majority([right, wrong, wrong], 3) == 0.0
    assert majority([right, none, none], 3) == 1.0
    assert majority([right, wrong], 2) == 0.5
    assert majority([right, wrong, vote("9")], 3) == pytest.approx(1 / 3)
    assert majority([none, none], 2) == 0.0
    assert majority([right, right], 3) is None


def test_tasks_say_which_spellings_are_one_answer() -> None:
    problem = Problem("0", {}, "#### 1000")
    outputs = ["It is $1,000.", "1000", "none"]
    found = score(TASKS["gsm8k"], [problem] * 3, outputs, no_code)
    assert [each.vote for each in found] == ["1000", "1000", None]
    spell = TASKS["math500"].metrics[0].spell
    assert spell is not None
    assert spell(r"\boxed{\dfrac{1}{2}}") == spell(r"\boxed{ \frac{1}{2}}")


def no_code(checks: list[Check]) -> list[Any]:
    assert not checks
    return []


def test_code_is_not_voted_on() -> None:
    one = run("a", [[1, 0]], execution={"python": "3"})
    assert [each.name for each in measures_of(one)] == ["pass@1", "pass@2"]
    assert [each.name for each in measures_of(run("a", [[1, 0]]))][-1] == "maj@2"
    assert [each.name for each in measures_of(run("a", [[1], [0]]))] == ["pass@1"]


# Figures of a run


def test_a_row_has_a_figure_for_each_k() -> None:
    row = only(run("a", [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    assert (row.count, row.problems) == (12, 3)
    assert row.score == pytest.approx((0.5 + 0 + 1) / 3)
    values = {each.measure.name: each.value for each in row.figures}
    assert values == {
        "pass@1": pytest.approx(row.score), "pass@2": pytest.approx((5 / 6 + 0 + 1) / 3),
        "pass@4": pytest.approx(2 / 3), "maj@4": pytest.approx(1.5 / 3),
    }  # fmt: skip
    assert row.interval == row.figures[0].interval
    assert next(cells[2:4] for cells in figure_cells(row)) == ["pass@1", "3"]


def test_problems_of_too_few_samples_count_where_they_can() -> None:
    row = only(run("a", [[1, 0, 0, 0], [1, 1], [0]]), pass_at=[2, 3])
    found = {each.measure.name: (each.problems, each.value) for each in row.figures}
    assert found == {
        "pass@1": (3, pytest.approx((0.25 + 1 + 0) / 3)), "pass@2": (2, pytest.approx(0.75)),
        "pass@3": (1, pytest.approx(0.75)), "maj@4": (1, 0.0),
    }  # fmt: skip
    assert row.score == pytest.approx(1.25 / 3)


def test_problems_are_resampled_with_all_their_samples() -> None:
    """Equal samples of a problem are no more evidence than one of them."""
    scores = [[float(index % 3 == 0)] * 6 for index in range(30)]
    row = only(run("a", scores))
    random = np.random.default_rng(5)
    values = np.array([each[0] for each in scores])
    replicates = random.choice(values, (20_000, 30)).mean(1)
    left_one_out = (values.sum() - values) / 29
    expected = bca(float(values.mean()), replicates, left_one_out)
    for figure in row.figures:
        assert figure.interval == pytest.approx(expected, abs=0.04)  # in steps of 1/30


def test_one_sample_each_keeps_its_interval() -> None:
    row = only(run("a", [[1], [0], [1]]))
    assert row.interval == wilson(2 / 3, 3)
    assert [each.measure.name for each in row.figures] == ["pass@1"]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_where_nothing_varies_the_interval_is_that_of_problems(score: float) -> None:
    row = only(run("a", [[score] * 4] * 9))
    assert {each.interval for each in row.figures} == {wilson(score, 9)}
    same = only(run("a", [[1, 0, 0]] * 9))
    assert same.interval == pytest.approx(wilson(1 / 3, 9))


def test_problems_that_lack_samples_are_not_resampled() -> None:
    """As in a run that was stopped while it grew: a measure has the figures of those it is of."""
    scores = drawn(0, 10, 4)
    grown = only(run("a", [row if index < 5 else row[:1] for index, row in enumerate(scores)]))
    done = only(run("a", scores[:5]))
    assert [each.problems for each in grown.figures] == [10, 5, 5, 5]
    assert [(each.value, each.interval) for each in grown.figures[1:]] == [
        (each.value, each.interval) for each in done.figures[1:]
    ]
    pairs = grown.figures[1]
    assert pairs.value is not None
    assert pairs.interval != wilson(pairs.value, 5)


def test_what_is_printed_of_several_samples_is_defined() -> None:
    both, code = measures_of(run("a", [[1, 0]])), measures_of(run("a", [[1, 0]], execution={}))
    assert definitions(both) == list(DEFINITIONS)
    assert [term for term, _ in definitions(code)] == ["n", "score", "pass@k", "95%"]
    assert [term for term, _ in definitions(both, compared=True)] == [
        "n", "score", "pass@k", "maj@n"
    ]  # fmt: skip
    assert [term for term, _ in definitions([], compared=True)] == ["n", "score"]
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    for name, meaning in DEFINITIONS:
        assert f"| {name} | {meaning} |" in page


# Comparisons


def test_runs_of_several_samples_are_compared_by_problem() -> None:
    a, b = drawn(0, 40, 4), drawn(1, 40, 4, 0.5)
    (found,) = compare([run("a", a), run("b", b)])
    assert (found.pairs, found.problems, found.left_out) == (40, 40, (0, 0))
    assert found.scores == pytest.approx((np.mean(a), np.mean(b)))
    ahead = np.sum(b, axis=1) - np.sum(a, axis=1)
    assert found.discordant == (int((ahead < 0).sum()), int((ahead > 0).sum()))
    signs = np.random.default_rng(0).choice([-1, 1], (100_000, 40))
    expected = (abs(signs @ ahead) >= abs(ahead.sum())).mean()
    assert found.p == pytest.approx(expected, abs=0.005)
    assert [each.measure.name for each in found.contrasts] == ["pass@2", "pass@4", "maj@4"]
    last = found.contrasts[1]
    assert last.scores == (np.mean(np.max(a, axis=1)), np.mean(np.max(b, axis=1)))
    assert last.difference.value == pytest.approx(last.scores[1] - last.scores[0])
    assert last.difference.interval is not None
    low, high = last.difference.interval
    assert low < last.scores[1] - last.scores[0] < high


def test_more_samples_on_one_side_leave_no_test_but_an_interval() -> None:
    greedy, several = run("a", drawn(0, 40, 1)), run("b", drawn(1, 40, 4, 0.8))
    (found,) = compare([greedy, several])
    assert (found.pairs, found.left_out, found.p, found.contrasts) == (40, (0, 0), None, ())
    assert found.difference.interval is not None
    assert table([found])[1][0][8] == "-"
    assert as_json(found)["p"] is None
    assert contrast_table([found])[1] == []


def test_problems_of_unlike_numbers_of_samples_have_no_test() -> None:
    a, b = [[1, 0, 0], [0, 0, 0], [1, 1]], [[1, 1, 1], [1, 1, 0], [1, 1]]
    (found,) = compare([run("a", a), run("b", b)])
    assert found.p is None
    assert "omitted if problems differ in their number of samples" in dict(METHODS)["p"]
    (equal,) = compare([run("a", a[:2]), run("b", b[:2])])
    assert equal.p == 0.5


def test_measures_are_compared_over_problems_that_have_them() -> None:
    a, b = drawn(0, 10, 4), drawn(1, 10, 4)
    grown = [
        run(name, [row if index < 5 else row[:1] for index, row in enumerate(rows)])
        for name, rows in (("a", a), ("b", b))
    ]
    (found,) = compare(grown)
    (done,) = compare([run("a", a[:5]), run("b", b[:5])])
    assert found.contrasts == tuple(
        replace(each, measure=other.measure)
        for each, other in zip(done.contrasts, found.contrasts, strict=True)
    )
    assert all(each.difference.interval for each in found.contrasts)


def test_costs_are_those_of_a_sample() -> None:
    a, b = run("a", drawn(0, 4, 1)), run("b", drawn(1, 4, 3))
    dear = [replace(each, forwards=10 * (1 + each.repeat)) for each in b.samples]
    (found,) = compare([a, replace(b, samples=dear)])
    assert found.forwards.value == pytest.approx(20 / 5)


def test_templates_stay_with_their_problem() -> None:
    def twice(one: Run) -> Run:
        more = [replace(each, template="plain") for each in one.samples]
        settings = one.settings | {"templates": ["chat", "plain"]}
        return replace(one, settings=settings, samples=[*one.samples, *more])

    a, b = run("a", drawn(0, 12, 3)), run("b", drawn(1, 12, 3))
    (single,) = compare([a, b])
    *_, both = compare([twice(a), twice(b)])
    assert (both.template, both.pairs, both.problems) == (ALL, 24, 12)
    assert both.p == pytest.approx(single.p)
    assert both.difference == single.difference
    assert [each.difference for each in both.contrasts] == [
        each.difference for each in single.contrasts
    ]


def test_comparisons_take_the_k_that_both_runs_have() -> None:
    a, b, c = (run(n, drawn(0, 6, size)) for n, size in (("a", 6), ("b", 4), ("c", 2)))
    names = {
        each.other: [contrast.measure.name for contrast in each.contrasts]
        for each in compare([a, b, c], pass_at=[3])
    }
    assert names == {"b": ["pass@3"], "c": []}
    told = as_json(compare([a, b])[0])
    assert list(told["pass_at"]) == ["2", "4"]
    assert told["maj_at"] == {}
    with pytest.raises(ValueError, match="--pass-at must be at most the samples of a problem"):
        compare([a, b], pass_at=[5])
    with pytest.raises(ValueError, match="--pass-at must be an int >= 1"):
        compare([a, b], pass_at=[0])


# Refusals


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, False),
        ({"decoder": "threshold", "decoder_options": {"threshold": 0.5}}, False),
        ({"decoder": "pc_sampler"}, False),
        ({"decoder": "remdm"}, False),
        ({"decoder": "schedule"}, False),
        ({"temperature": 0.5, "top_k": 1}, False),
        ({"temperature": 0.5}, True),
        ({"position_temperature": 0.1}, True),
        ({"decoder": "random"}, True),
        ({"decoder": Random()}, True),
        ({"decoder": "dream", "decoder_options": {"alg": "origin"}}, True),
        ({"decoder": "remdm", "decoder_options": {"variant": "conf"}}, True),
        ({"decoder": "first_hitting"}, True),
        ({"decoder": "ancestral"}, True),
        ({"decoder": "info_gain"}, True),
        ({"decoder": "info_gain", "decoder_options": {"branches": 1}}, False),
        ({"decoder": "lopa"}, False),
    ],
)
def test_several_samples_need_something_drawn(options: dict[str, Any], drawn: bool) -> None:
    chosen = choose_options(TASKS["sudoku"], None, options)
    check_samples(1, chosen)
    if drawn:
        check_samples(3, chosen)
    else:
        with pytest.raises(ValueError, match=r"--samples must be 1 where nothing is drawn, got 3"):
            check_samples(3, chosen)


def test_a_schedule_draws_where_its_base_policy_does(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    for policy, drawn in (("random", True), ("low_confidence", False)):
        replace(ScheduleArtefact.identity(8, 99, 0), base_policy=policy).save(path)
        options = {"decoder": "schedule", "decoder_options": {"path": str(path)}}
        assert draws(choose_options(TASKS["sudoku"], None, options)) is drawn


def test_samples_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="--samples must be an int >= 1, got 0"):
        check_samples(0, choose_options(TASKS["sudoku"], None, {"temperature": 1.0}))
