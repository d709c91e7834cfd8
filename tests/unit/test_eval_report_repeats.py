"""The report of runs with several samples of a problem."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm.eval.folder import Run
from dlm.eval.inference import wilson
from dlm.eval.repeats import DEFINITIONS, HEAD
from dlm.eval.report import markdown, write_report
from dlm.eval.report.samples import EACH, browser_data, chosen, rows_of
from dlm.eval.report.view import view
from dlm.eval.sample import Sample

SETTINGS: dict[str, Any] = {
    "task": "sums", "task_version": 1, "data": {"sha256": "aa"}, "model": "tiny", "dlm": "0.9",
    "dtype": "float32", "device": "cpu", "decoder_options": {}, "generation": {"seed": 7},
}  # fmt: skip


def run(decoder: str, scores: dict[str, Sequence[Sequence[float]]], repeats: int) -> Run:
    """A run whose samples have these scores, by template, index and number."""
    samples = [
        Sample(
            task="sums", template=template, id=f"test/{index}", index=index, repeat=repeat,
            prompt=f"What is {index}?", prompt_tokens=5, output=f"{decoder} says {repeat}.",
            tokens=[1, 2], order=[0, 1], response_tokens=2, decoded_tokens=2, forwards=2,
            query_tokens=14, seconds=0.25, answer="", extracted={"m": str(score)},
            vote=str(score), scores={"m": score}, score=float(score), detail="", seed=7,
            settings="",
        )
        for template, row in scores.items()
        for index, group in enumerate(row)
        for repeat, score in enumerate(group)
    ]  # fmt: skip
    problems = max(map(len, scores.values()))
    settings = SETTINGS | {"decoder": decoder, "templates": list(scores)}
    return Run(Path("runs") / decoder, settings, "hash", problems, [], samples, repeats)


def pair() -> list[Run]:
    return [
        run("low", {"chat": [[1, 1], [0, 0], [1, 0]], "plain": [[0, 0], [0, 0], [1, 1]]}, 2),
        run("high", {"chat": [[1, 0], [0, 1], [1, 0]], "plain": [[1, 0], [0, 0], [1, 0]]}, 2),
    ]


def greedy() -> Run:
    return run("greedy", {"chat": [[1], [0], [1]], "plain": [[0], [0], [1]]}, 1)


def page(runs: Sequence[Run], folder: Path, **options: Any) -> str:
    write_report(runs, folder / "page.html", **options)
    return re.sub(r"<wbr>|&nbsp;|\xa0|&#160;", "", (folder / "page.html").read_text())


def test_the_page_has_pass_at_k_of_each_run_and_template(tmp_path: Path) -> None:
    told = page(pair(), tmp_path)
    assert "<h3>Several samples</h3>" in told
    assert told.count("<td>pass@2</td>") == told.count("<td>maj@2</td>") == 2 * 3
    for term, _ in DEFINITIONS:
        assert f"<dt>{term}</dt>" in told
    assert "95%: see what is counted." in told
    assert "Not complete" not in told
    plain = page([greedy()], tmp_path)
    assert not re.search("Several samples|pass@|Chen et al", plain)
    assert "95%: Wilson interval." in plain


def test_a_run_of_one_sample_stands_beside_one_of_several(tmp_path: Path) -> None:
    told = page([greedy(), pair()[0]], tmp_path, pass_at=[2])
    assert told.count("<td>pass@2</td>") == 3
    with pytest.raises(ValueError, match=r"--pass-at must be at most .* which are 2, got 3"):
        write_report([greedy(), pair()[0]], tmp_path / "page.html", pass_at=[3])


def test_an_unfinished_run_lacks_samples(tmp_path: Path) -> None:
    first, second = pair()
    told = page([replace(first, samples=first.samples[:-1]), second], tmp_path)
    assert "low has 11 of 12 samples." in told
    assert "5 of 6" in told


def test_templates_together_are_resampled_by_problem() -> None:
    first, _ = view(pair()).entries
    every = first.overall
    assert (every.template, every.count, every.problems) == ("all", 12, 3)
    assert every.score == pytest.approx(5 / 12)
    assert every.interval == every.figures[0].interval
    assert [each.measure.name for each in every.figures] == ["pass@1", "pass@2", "maj@2"]
    assert {each.problems for each in every.figures} == {3}
    once = view([greedy()]).entries[0].overall
    assert once.interval == once.figures[0].interval == wilson(0.5, 3)
    scores = [[float(place % 3 == 0), float(place % 2)] for place in range(12)]
    (one,) = view([run("one", {"chat": scores}, 2)]).entries
    (same,) = view([run("same", {"chat": scores, "plain": scores}, 2)]).entries
    assert [each.interval for each in same.overall.figures] == [
        each.interval for each in one.overall.figures
    ]


def test_markdown_has_a_table_of_measures() -> None:
    _, _, measures, *_ = markdown(pair()).split("\n\n")
    cells = [[each.strip() for each in line.strip("|").split("|")] for line in measures.split("\n")]
    assert cells[0] == [*HEAD, "points", "95% of points"]
    assert {len(line) for line in cells} == {len(HEAD) + 2}
    assert len(cells) == 2 + 2 * 3 * 3
    found = {(line[0], line[1], line[2]): line[3:] for line in cells[2:]}
    assert found["low", "chat", "pass@2"][::2] == ["3", "0.0% - 100.0%", ""]
    assert found["low", "chat", "pass@2"][3] == "baseline"
    assert found["high", "chat", "pass@2"][1:4:2] == ["100.0%", "+33.3"]
    assert found["high", "chat", "pass@1"][3] == "+0.0"
    assert found["high", "all", "pass@2"][0] == "3"
    alone = markdown(pair()[:1]).split("\n\n")[2]
    assert alone.split("\n")[0].count("|") == len(HEAD) + 1


def test_a_baseline_of_one_sample_has_its_row(tmp_path: Path) -> None:
    runs = [greedy(), pair()[0]]
    measures = markdown(runs).split("\n\n")[2].split("\n")
    of_greedy = [[each.strip() for each in x.split("|")[1:-1]] for x in measures if "greedy" in x]
    assert [line[1:4] for line in of_greedy] == [
        [template, "pass@1", "3"] for template in ("chat", "plain", "all")
    ]
    assert {line[6] for line in of_greedy} == {"baseline"}
    assert page(runs, tmp_path).count("<td>pass@1</td>") == 2 * 3
    assert "pass@1" not in markdown([greedy()])


def test_prompts_hold_the_samples_of_all_runs() -> None:
    many = run("many", {"chat": [[1] * 5 + [0] * 5]}, 10)
    found = browser_data(view([many, run("one", {"chat": [[1]]}, 1)]), 9)
    (item,) = found["items"]
    assert item["right"] == [[5, 10], [1, 1]]
    assert [len(group) for group in item["samples"]] == [EACH, 1]
    assert [each["repeat"] for each in item["samples"][0]] == list(range(EACH))
    assert item["differs"]


def test_runs_differ_where_one_is_right_more_often() -> None:
    rows = rows_of(view(pair()))
    assert list(chosen(rows, 2)) == [("chat", 0), ("plain", 0)]
    assert len(rows) == 6


def test_a_page_says_how_many_samples_it_holds(tmp_path: Path) -> None:
    many = run("many", {"chat": [[1] * 5 + [0] * 5]}, 10)
    assert f"Of each prompt it holds the first {EACH} samples of a run." in page([many], tmp_path)
    assert "Of each prompt" not in page(pair(), tmp_path)
    data = json.loads(page([many], tmp_path).split('id="data">')[1].split("</script>")[0])
    assert data["items"][0]["right"] == [[5, 10]]
