"""`dlm eval --samples` on the built-in model: growth, processes, and what users see."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import dlm
from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.eval.folder import Folder, Run, digest, merge, read_run
from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan, settings_of
from dlm.eval.repeats import DEFINITIONS, HEAD
from dlm.eval.runner import Progress, Worker, evaluate, launch_facts, refuse_code
from dlm.eval.sample import Key, Sample
from dlm.eval.tasks import TASKS
from dlm.eval.world import World
from dlm.models.loading import silence
from dlm.models.model import Model

Facts = dict[Key, tuple[Any, ...]]


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


@pytest.fixture(scope="module")
def dlm_eval() -> Callable[..., Result]:
    app = typer.Typer(cls=Commands)
    attach(app)
    runner = CliRunner()
    return lambda *given: runner.invoke(app, ["eval", *given], prog_name="dlm")


def plan(problems: int, samples: int) -> Plan:
    task = TASKS["sudoku"]
    options = choose_options(task, None, {"temperature": 8.0, "steps": 3})
    templates = choose_templates(task, ["plain"], chat=True)
    return make_plan(task, templates, options, limit=problems, samples=samples)


def run(model: Model, output: Path, problems: int, samples: int, **more: Any) -> Run:
    return evaluate(model, plan(problems, samples), output, name="m", **more)


def facts(found: Run) -> Facts:
    """All of a run's samples but the time they took."""
    names = [name for name in Sample.__dataclass_fields__ if name != "seconds"]
    return {each.key: tuple(getattr(each, name) for name in names) for each in found.samples}


@pytest.fixture(scope="module")
def whole(built_in: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(built_in, tmp_path_factory.mktemp("whole"), 3, 3, batch_size=16)


def test_samples_of_a_problem_are_drawn_apart(whole: Run) -> None:
    assert whole.complete
    keys = [each.key for each in whole.samples]
    assert keys == [("plain", index, repeat) for index in range(3) for repeat in range(3)]
    assert len({tuple(each.tokens) for each in whole.samples}) > 6
    assert {each.vote for each in whole.samples} == {
        each.extracted["solved"] for each in whole.samples
    }


def test_a_sample_depends_on_problem_and_number_alone(
    built_in: Model, whole: Run, tmp_path: Path
) -> None:
    """Neither on how many problems and samples there are, nor on the batch it was decoded in."""
    one = run(built_in, tmp_path, 2, 1, batch_size=1)
    assert facts(one).items() <= facts(whole).items()
    grown = run(built_in, tmp_path, 2, 2, batch_size=4)
    assert [each for each in grown.samples if not each.repeat] == one.samples
    assert facts(grown).items() <= facts(whole).items()
    assert facts(run(built_in, tmp_path, 3, 3, batch_size=2)) == facts(whole)
    with pytest.raises(ValueError, match="--samples must be at least the 3 samples of each"):
        run(built_in, tmp_path, 3, 2)


def test_a_run_goes_on_between_the_samples_of_a_problem(
    built_in: Model, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(built_in, tmp_path, 3, 3, batch_size=4, report=stop)
    there = [each.key for each in read_run(tmp_path).samples]
    made = plan(3, 3)
    keys: list[int] = []
    each = dlm.generate_each

    def counted(model: Model, rows: Any, **options: Any) -> Any:
        keys.extend(options["row_keys"])
        return each(model, rows, **options)

    monkeypatch.setattr(dlm, "generate_each", counted)
    assert facts(evaluate(built_in, made, tmp_path, name="m")) == facts(whole)
    left = {(index, repeat) for _, index, repeat in set(facts(whole)) - set(there)}
    assert len(there) == 4
    assert sorted(keys) == sorted(index + (repeat << 32) for index, repeat in left)


def test_a_run_that_goes_on_spells_the_answers_that_are_there(
    built_in: Model, tmp_path: Path
) -> None:
    def spelled(samples: int, spell: Callable[[str], str] | None) -> Plan:
        made = plan(1, samples)
        first, *rest = made.task.metrics
        first = replace(first, extract=lambda problem, output: "a 1", spell=spell)
        return replace(made, task=replace(made.task, metrics=(first, *rest)))

    before = evaluate(built_in, spelled(1, None), tmp_path, name="m")
    after = evaluate(built_in, spelled(2, str.upper), tmp_path, name="m")
    assert [each.vote for each in before.samples] == ["a 1"]
    assert [each.vote for each in after.samples] == ["A 1", "A 1"]


class Apart(World):
    """One of several processes, which here work one after the other."""

    def wait(self) -> None:
        """Nobody is there to wait for."""


def test_processes_share_the_samples_of_a_problem(
    built_in: Model, whole: Run, tmp_path: Path
) -> None:
    made = plan(3, 3)
    settings = settings_of(made, built_in, "m")
    with Folder(tmp_path) as folder:
        folder.open(settings, 3, launch_facts(made, 2, World()), samples=3)
        for rank in (1, 0):
            items = made.items(built_in)
            worker = Worker(built_in, made, items, digest(settings), refuse_code, None)
            worker.work(tmp_path, Apart(rank, 2), batch_size=2)
            if rank:
                path = tmp_path / "samples.rank1.jsonl"
                lines = path.read_text().splitlines()
        merge(tmp_path, digest(settings))
    assert {json.loads(line)["repeat"] for line in lines} == {0, 1, 2}
    assert facts(read_run(tmp_path)) == facts(whole)


def test_people_and_machines_see_pass_at_k(dlm_eval: Callable[..., Result], tmp_path: Path) -> None:
    given = ("sudoku", "--limit", "2", "--decoder", "random", "--samples", "3", "--steps", "3")
    folders = [str(tmp_path / name) for name in "ab"]
    shown = dlm_eval(*given, "--output", folders[0])
    assert shown.exit_code == 0, shown.output
    assert re.search(r" +".join(HEAD), shown.stdout)
    for name in ("pass@1", "pass@2", "pass@3", "maj@3"):
        assert f" {name} " in shown.stdout
    told = " ".join(shown.stderr.split())
    for name, meaning in DEFINITIONS:
        assert f"{name}: {' '.join(meaning.split())}" in told
    again = dlm_eval(*given[:5], *given[7:], "--output", folders[0], "--pass-at", "3")
    assert re.findall(r" (pass@\d) ", again.stdout) == ["pass@1", "pass@3"], again.output
    other = (*given, "--seed", "1", "--output", folders[1], "--json")
    row = json.loads(dlm_eval(*other, "--pass-at", "2").stdout)
    assert (row["samples"], row["problems"], row["samples_per_problem"]) == (6, 2, 3)
    assert list(row["pass_at"]) == ["1", "2"]
    assert list(row["maj_at"]) == ["3"]
    assert row["pass_at"]["1"]["value"] == row["score"]
    assert row["pass_at"]["1"]["interval"] == row["interval"]
    compared = dlm_eval("compare", *folders, "--pass-at", "3")
    assert "pass@3" in compared.stdout
    assert "pass@2" not in compared.stdout
    assert "Chen et al. 2021" in compared.stderr
    assert "Wilson" not in compared.stderr
    found = json.loads(dlm_eval("compare", *folders, "--json").stdout)
    assert list(found["pass_at"]) == ["2", "3"]
    greedy = str(tmp_path / "c")
    dlm_eval("sudoku", "--limit", "2", "--steps", "3", "--output", greedy)
    compared = dlm_eval("compare", greedy, folders[0])
    assert "\nscore: share of a problem's samples" in compared.stderr
    assert not re.search("pass@|maj@", compared.stdout + compared.stderr.replace(": pass@1", ""))
    markdown = dlm_eval("report", *folders, "--markdown").stdout
    assert markdown.count("| pass@3 |") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--samples", "2"), "--samples must be 1 where nothing is drawn, got 2"),
        (("--samples", "0"), "invalid value for '--samples': must be an int >= 1, got '0'"),
        (
            ("--samples", "2", "--temperature", "1", "--pass-at", "4"),
            "--pass-at must be at most the samples of a problem, which are 2, got 4",
        ),
        (("--pass-at", "2"), "--pass-at must be at most the samples of a problem, which are 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    dlm_eval: Callable[..., Result], given: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = dlm_eval("sudoku", *given, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
