"""What a run does around decoding: stop texts, the warm-up, the pace, the commit, the sandbox."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.eval import runner
from dlm.eval.decode import Item
from dlm.eval.job import Job
from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan
from dlm.eval.runner import Pace, Progress, commit, evaluate
from dlm.eval.sample import Sample
from dlm.eval.task import Template
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


@pytest.fixture
def plan() -> Plan:
    task = TASKS["sudoku"]
    options = choose_options(task, None, {"decoder": "threshold"})
    return make_plan(task, choose_templates(task, ["plain"], chat=True), options, limit=3)


def test_outputs_end_at_the_stop_texts_of_their_template(
    built_in: Model, plan: Plan, tmp_path: Path
) -> None:
    whole = evaluate(built_in, plan, tmp_path / "whole", name="m").samples
    (template,) = plan.templates
    assert isinstance(template, Template)
    stop = whole[0].output[3]
    cut = replace(plan, templates=(replace(template, until=(stop,)),))
    samples = evaluate(built_in, cut, tmp_path / "cut", name="m").samples
    assert [s.output for s in samples] == [s.output.partition(stop)[0] for s in whole]
    assert [s.tokens for s in samples] == [s.tokens for s in whole]


def test_a_process_warms_up_once_with_its_longest_prompt(
    built_in: Model, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    each = dlm.generate_each

    def warm(model: Model, item: Item, options: dict[str, Any]) -> None:
        told.append(len(item.tokens))

    def decode(model: Model, rows: Any, **options: Any) -> Any:
        told.append([len(row) for row in rows])
        return each(model, rows, **options)

    monkeypatch.setattr(runner, "warm_up", warm)
    monkeypatch.setattr(dlm, "generate_each", decode)
    evaluate(built_in, plan, tmp_path, name="m", batch_size=2)
    longest, lengths = told
    assert len(lengths) == 3
    assert longest == max(lengths)
    evaluate(built_in, plan, tmp_path, name="m")
    assert told == [longest, lengths]  # with nothing left to decode there is nothing to warm


def test_time_left_is_that_of_the_positions_left(
    built_in: Model, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = plan.items(built_in)
    now = 100.0
    monkeypatch.setattr("dlm.eval.runner.time.perf_counter", lambda: now)
    sizes = [len(item.tokens) + 20 for item in items]
    pace = Pace(len(items), {item.key: size for item, size in zip(items, sizes, strict=True)})
    now = 106.0
    pace.add([sample(items[0], score=1.0)])
    expected = 6.0 * sum(sizes[1:]) / sizes[0]
    told = pace.progress()
    assert told == Progress(
        1, 3, 1.0, response_tokens_per_second=4.0, seconds_left=told.seconds_left
    )
    assert told.seconds_left == pytest.approx(expected)
    pace.add([sample(item, score=0.0) for item in items[1:]])
    assert pace.progress().seconds_left == 0.0
    assert pace.progress().score == pytest.approx(1 / 3)


def sample(item: Item, score: float) -> Sample:
    return Sample(
        task="t", template=item.template.name, id="0", index=item.index, prompt="?",
        prompt_tokens=len(item.tokens), output="", tokens=[], order=[], response_tokens=8,
        decoded_tokens=8, forwards=2, query_tokens=9, seconds=2.0, answer="", extracted={},
        scores={"s": score}, score=score, detail="", seed=0, settings="",
    )  # fmt: skip


def test_the_commit_is_that_of_the_checkout() -> None:
    told = commit()
    assert told is None or re.fullmatch("[0-9a-f]{7,40}(-dirty)?", told)
    checkout = (Path(runner.__file__).resolve().parents[1] / ".git").exists()
    assert (told is not None) == checkout


@pytest.mark.parametrize("unsafe", [False, True])
def test_the_sandbox_is_found_and_used_as_told(
    unsafe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class Box:
        def statement(self) -> str:
            return "holds"

        def run_all(self, checks: list[Any], workers: int) -> list[Any]:
            told["workers"] = workers
            return checks

        def facts(self) -> dict[str, Any]:
            return {"python": "3"}

    def find(*, unsafe: bool) -> Box:
        told["unsafe"] = unsafe
        return Box()

    monkeypatch.setattr("dlm.eval.sandbox.Sandbox.find", find)
    made = job("humaneval", workers=7, unsafe=unsafe)
    sandbox = made.sandbox()
    assert sandbox is not None
    assert sandbox.run_all([]) == []
    assert sandbox.facts() == {"python": "3"}
    assert told == {"unsafe": unsafe, "workers": 7}
    assert job("gsm8k", workers=7, unsafe=unsafe).sandbox() is None


def job(task: str, **more: Any) -> Job:
    usual: dict[str, Any] = {
        "model": None, "device": None, "dtype": "auto", "adapter": None, "facts": {},
        "templates": [],
        "preset": None,
        "options": {}, "data": None, "shots": None, "limit": None, "batch_size": 1, "output": None,
        "machine": True,
    }  # fmt: skip
    return Job(task=TASKS[task], **usual | more)
