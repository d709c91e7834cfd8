"""`dlm eval` on the built-in model: the same samples however the work is cut up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.eval.folder import SAMPLES, Run, read_run
from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan
from dlm.eval.runner import Progress, evaluate
from dlm.eval.sample import Sample
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model

Facts = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


def facts(run: Run) -> Facts:
    """All of a run's samples but the time they took."""
    return [
        tuple(getattr(each, name) for name in Sample.__dataclass_fields__ if name != "seconds")
        for each in run.samples
    ]


def plan_sudoku(limit: int = 9, **more: Any) -> Plan:
    task = TASKS["sudoku"]
    templates = choose_templates(task, more.pop("templates", ["plain"]), chat=True)
    options = choose_options(task, None, {"decoder": "threshold", **more})
    return make_plan(task, templates, options, limit=limit)


def run_sudoku(
    model: Model, output: Path, *, limit: int = 9, batch_size: int = 4, **more: Any
) -> Run:
    report = more.pop("report", None)
    plan = plan_sudoku(limit, **more)
    return evaluate(model, plan, output, name="built-in", batch_size=batch_size, report=report)


def test_a_run_tells_what_it_did(built_in: Model, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run = run_sudoku(built_in, tmp_path, report=seen.append)
    assert run.complete
    assert [each.index for each in run.samples] == list(range(9))
    assert run.samples == read_run(tmp_path).samples
    assert [(each.done, each.total) for each in seen] == [(4, 9), (8, 9), (9, 9)]
    score = sum(each.score for each in run.samples) / 9
    assert seen[-1].score == score > 0.5
    one = run.samples[0]
    assert one.forwards == max(one.order) + 1
    assert one.query_tokens == one.forwards * (one.prompt_tokens + len(one.tokens))
    assert one.decoded_tokens == sum(at >= 0 for at in one.order)
    assert one.response_tokens == 16
    assert one.seconds > 0
    assert run.settings["generation"]["gen_length"] == len(one.tokens)
    assert run.settings["weights"] == read_run(tmp_path).settings["weights"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_changes_no_sample(built_in: Model, tmp_path: Path, temperature: float) -> None:
    alone = run_sudoku(built_in, tmp_path / "1", batch_size=1, temperature=temperature)
    batch = run_sudoku(built_in, tmp_path / "16", batch_size=16, temperature=temperature)
    assert facts(alone) == facts(batch)


def test_a_run_goes_on_and_repeats_nothing(
    built_in: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sudoku(built_in, tmp_path / "whole", temperature=1.0)

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_sudoku(built_in, tmp_path / "parts", temperature=1.0, report=stop)
    there = {each.index for each in read_run(tmp_path / "parts").samples}
    plan = plan_sudoku(temperature=1.0)
    calls: list[int] = []
    each = dlm.generate_each

    def counted(model: Model, rows: Any, **options: Any) -> Any:
        calls.extend(options["row_keys"])
        return each(model, rows, **options)

    monkeypatch.setattr(dlm, "generate_each", counted)
    run = evaluate(built_in, plan, tmp_path / "parts", name="built-in")
    assert facts(run) == facts(whole)
    assert sorted([*calls, *there]) == list(range(9))
    assert len(run.launches) == 2
    again = evaluate(built_in, plan, tmp_path / "parts", name="built-in")
    assert (again.samples, len(calls)) == (run.samples, 5)


def test_more_problems_join_those_that_are_there(built_in: Model, tmp_path: Path) -> None:
    few = run_sudoku(built_in, tmp_path / "grows", limit=3)
    more = run_sudoku(built_in, tmp_path / "grows", limit=7)
    assert more.samples[:3] == few.samples
    assert facts(more) == facts(run_sudoku(built_in, tmp_path / "once", limit=7))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"decoder": "saber"}, "decoder"), ({"seed": 1}, "seed"), ({"steps": 3}, "steps"),
     ({"templates": ["explained"]}, "templates"),
     ({"decoder_options": {"threshold": 0.5}}, "decoder_options")],
)  # fmt: skip
def test_a_folder_of_another_run_is_refused(
    built_in: Model, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run_sudoku(built_in, tmp_path, limit=1)
    before = (tmp_path / SAMPLES).read_text()
    with pytest.raises(ValueError, match=f"holds a run with {named} .*give another folder"):
        run_sudoku(built_in, tmp_path, limit=1, **change)
    assert (tmp_path / SAMPLES).read_text() == before


def test_a_prompt_too_long_for_the_model_counts_as_failed(built_in: Model, tmp_path: Path) -> None:
    run = run_sudoku(built_in, tmp_path, limit=2, gen_length=512 - 20)
    assert [each.score for each in run.samples] == [0.0, 0.0]
    assert all(each.forwards == 0 and not each.tokens for each in run.samples)
    assert "exceed the model's 512 positions" in run.samples[0].detail


def command(*given: str, output: Path, launcher: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Run `dlm eval` in a process of its own; its JSON lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    start = [sys.executable, *launcher] if launcher else [sys.executable]
    done = subprocess.run(
        [*start, "-m", "dlm", "eval", *given, "--output", str(output), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_two_processes_give_the_samples_of_one(tmp_path: Path) -> None:
    given = ("sudoku", "--limit", "4", "--batch-size", "2", "--decoder", "threshold")
    sampled = (*given, "--temperature", "1", "--samples", "2")
    (one,) = command(*sampled, output=tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    (two,) = command(*sampled, output=tmp_path / "two", launcher=launcher)
    assert facts(read_run(tmp_path / "one")) == facts(read_run(tmp_path / "two"))
    assert one["samples"] == two["samples"] == 8
    assert one["pass_at"] == two["pass_at"]
    assert {one["score"]} == {two["score"]}
    assert one["settings"] == two["settings"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "lock", "run.json", "samples.jsonl"
    ]  # fmt: skip
    assert read_run(tmp_path / "two").launches[0]["processes"] == 2
