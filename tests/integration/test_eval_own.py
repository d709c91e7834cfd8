"""Benchmarks of the user's own, and tasks that there are not."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import dlm.eval
from dlm.cli.errors import Commands
from dlm.eval.cli import attach

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "evaluation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) == 1.0
    assert (tmp_path / "runs" / "sums" / "samples.jsonl").read_text().count("\n") == 2


def test_what_a_task_is_made_of_is_public() -> None:
    for name in ("Check", "Metric", "Preset", "Problem", "Source", "Task", "Template"):
        assert getattr(dlm.eval, name).__name__ == name
        assert name in dlm.eval.__all__


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mmlu", "unknown task 'mmlu'. Known: "),
        ("gsm9k", "unknown task 'gsm9k'. Did you mean 'gsm8k'? Known: "),
    ],
)
def test_a_task_of_lm_eval_is_pointed_to_it(name: str, said: str) -> None:
    app = typer.Typer(cls=Commands)
    attach(app)
    result = CliRunner().invoke(app, ["eval", name])
    assert result.exit_code == 2
    assert said in result.output
    assert f"; dlm lm-eval --tasks {name} takes those of lm-eval" in result.output
