"""What runs generated code is a setting of a run: it decides scores as a device does."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import dlm
from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.eval.folder import Run, read_run
from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan
from dlm.eval.runner import evaluate
from dlm.eval.sandbox import Limits, Outcome, Sandbox
from dlm.eval.sandbox.ladder import Python, unprotected
from dlm.eval.summary import execution_note, facts, partial_notes
from dlm.eval.task import Check
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model

DATA = Path(__file__).resolve().parent / "data"


@dataclass
class Box:
    """Passes everything."""

    python: str = "CPython 3.11.2"

    def facts(self) -> dict[str, Any]:
        return {"sandbox": "bubblewrap", "python": self.python, "cpu_seconds": 5}

    def run_all(self, checks: list[Check]) -> Sequence[Outcome]:
        return [Outcome(True, "passed", "", 0.1) for _ in checks]


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


def plan(task: str) -> Plan:
    chosen = TASKS[task]
    options = choose_options(chosen, None, {"gen_length": 8, "block_length": None, "steps": 1})
    templates = choose_templates(chosen, [], chat=True)
    data = DATA / "mbpp_sanitized.json" if task == "mbpp" else None
    return make_plan(chosen, templates, options, data=data, limit=1)


def run(model: Model, output: Path, box: Box) -> Run:
    return evaluate(model, plan("mbpp"), output, name="m", sandbox=box)


def test_the_interpreter_the_protection_and_the_limits_are_settings(
    built_in: Model, tmp_path: Path
) -> None:
    box = Box()
    made = run(built_in, tmp_path, box)
    assert made.settings["execution"] == box.facts()
    assert "code run by CPython 3.11.2 in bubblewrap" in facts(made)
    run(built_in, tmp_path, box)
    told = "holds a run with execution python 'CPython 3.11.2', got 'CPython 3.12.0'"
    with pytest.raises(ValueError, match=told):
        run(built_in, tmp_path, Box("CPython 3.12.0"))
    assert read_run(tmp_path).settings["execution"]["python"] == "CPython 3.11.2"


def test_runs_whose_code_ran_in_several_ways_are_told(built_in: Model, tmp_path: Path) -> None:
    one = run(built_in, tmp_path / "1", Box())
    two = run(built_in, tmp_path / "2", Box())
    three = run(built_in, tmp_path / "3", Box("CPython 3.12.0"))
    assert execution_note([one, two]) is None
    assert partial_notes([one, two]) == []
    some, wanted = replace(one, samples=one.samples[:-1]), len(one.samples)
    note = f"{one.folder} has {wanted - 1} of {wanted} samples: its figures will move"
    assert partial_notes([some, two]) == [note]
    told = execution_note([one, two, three])
    assert told is not None
    assert f"{three.folder}: sandbox bubblewrap, python CPython 3.12.0, cpu_seconds 5" in told
    app = typer.Typer(cls=Commands)
    attach(app)
    for more in ([], ["--json"]):
        args = ["eval", "compare", str(one.folder), str(three.folder), *more]
        found = CliRunner().invoke(app, args, prog_name="dlm")
        assert "code was not run in one way" in found.stderr


def test_a_sandbox_is_for_tasks_that_run_code(built_in: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sandbox must be given for mbpp"):
        evaluate(built_in, plan("mbpp"), tmp_path, name="m")
    with pytest.raises(ValueError, match="sandbox is for tasks that run generated code, not for"):
        evaluate(built_in, plan("sudoku"), tmp_path, name="m", sandbox=Box())
    done = evaluate(built_in, plan("sudoku"), tmp_path, name="m")
    assert "execution" not in done.settings
    assert execution_note([done]) is None


def test_a_sandbox_tells_what_it_runs_code_with() -> None:
    own = unprotected().python
    assert own.version() == f"{platform.python_implementation()} {platform.python_version()}"
    told = Sandbox.find(unsafe=True, limits=Limits(cpu_seconds=3)).facts()
    assert (told["cpu_seconds"], told["wall_seconds"]) == (3, 15.0)
    assert told["python"].startswith(platform.python_implementation())
    assert told["sandbox"] in ("bubblewrap", "unshare", "unprotected")


def test_the_version_is_that_of_the_interpreter_in_the_sandbox() -> None:
    box = Sandbox.find(unsafe=True)
    assert isinstance(box._rung.python, Python)
    said = "import platform\ndef f():\n    return platform.python_version()\n"
    version = box.facts()["python"].split()[1]
    assert box.run(Check(said, f"assert f() == {version!r}")).passed
