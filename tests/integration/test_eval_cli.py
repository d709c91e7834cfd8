"""`dlm eval` as users call it, on every task."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import dlm
from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.eval.counting import DEFINITIONS
from dlm.eval.folder import read_run
from dlm.eval.runner import evaluate
from dlm.eval.summary import HEAD
from dlm.eval.tasks import TASKS

Run = Callable[..., Result]
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data"
FIXTURES = Path(__file__).resolve().parent / "data"  # problems of our own in those formats
FILES = {
    "gsm8k": "gsm8k_test.jsonl",
    "humaneval": "HumanEval.jsonl.gz",
    "humaneval_infill": "HumanEval.jsonl.gz",
    "humaneval_infill_multi": "HumanEval.jsonl.gz",
    "mbpp": "mbpp_sanitized.json",
    "math500": "math500.jsonl",
    "sudoku": "sudoku_4x4.csv",
    "countdown": "countdown.jsonl",
}


@pytest.fixture(scope="module")
def dlm_eval() -> Run:
    app = typer.Typer(cls=Commands)
    attach(app)
    runner = CliRunner()

    def run(*given: str) -> Result:
        return runner.invoke(app, ["eval", *given], prog_name="dlm")

    return run


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def data_of(task: str) -> list[str]:
    """The published data where it is at hand, else what comes along, else our own few problems."""
    if task not in FILES:
        return []
    for folder in (PUBLISHED, FIXTURES):
        if (folder / FILES[task]).exists():
            return ["--data", str(folder / FILES[task])]
    assert TASKS[task].source.local is not None
    return []


@pytest.mark.one_in(4)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_to_its_end(dlm_eval: Run, task: str, tmp_path: Path) -> None:
    lengths = () if TASKS[task].infills else ("--gen-length", "48")
    given = (task, *data_of(task), "--decoder", "threshold", "--limit", "4", *lengths)
    (row,) = lines(dlm_eval(*given, "--output", str(tmp_path), "--json"))
    assert (row["task"], row["samples"], row["decoder"]) == (task, 4, "threshold")
    assert 0 <= row["score"] <= 1
    assert list(row["scores"]) == [metric.name for metric in TASKS[task].metrics]
    run = read_run(tmp_path)
    assert run.complete
    assert row["settings"] == run.hash
    assert sum(each.score for each in run.samples) == pytest.approx(4 * row["score"])
    if TASKS[task].runs_code:
        assert all(each.detail for each in run.samples)
        assert {"sandbox", "python", "cpu_seconds"} <= set(run.settings["execution"])
    again = lines(dlm_eval(*given, "--output", str(tmp_path), "--json", "--batch-size", "3"))
    assert again == [row]  # nothing was left to do, so nothing is told of the second start


def test_the_built_in_model_solves_sudokus(dlm_eval: Run, tmp_path: Path) -> None:
    given = ("sudoku", "--decoder", "threshold", "--limit", "20", "--output", str(tmp_path))
    (row,) = lines(dlm_eval(*given, "--json"))
    assert row["score"] > 0.8
    assert row["forwards"] < 4
    assert row["response_tokens_per_forward"] > 5
    samples = read_run(tmp_path).samples
    decoded = sum(each.decoded_tokens for each in samples)
    assert row["tokens_per_forward"] == decoded / sum(each.forwards for each in samples)


def test_people_see_a_table_and_what_its_columns_mean(dlm_eval: Run, tmp_path: Path) -> None:
    result = dlm_eval(
        "sudoku", "--limit", "3", "--template", "all", "--output", str(tmp_path), "--decoder",
        "threshold", "--option", "threshold=0.8",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    head = result.stdout.splitlines()[0]
    assert re.split(r" {2,}", head.strip()) == list(HEAD)
    for template in TASKS["sudoku"].templates:
        assert f" {template.name} " in result.stdout
    assert "threshold(threshold=0.8)" in result.stdout
    assert "over 3 templates: " in result.stdout
    told = " ".join(result.stderr.split())
    for name, meaning in DEFINITIONS:
        assert f"{name}: {' '.join(meaning.split())}" in told
    for fact in ("built-in", "cpu", "float32", "batch size 16", f"dlm {dlm.__version__}", "seed 0"):
        assert fact in told


def test_prompts_that_do_not_fit_are_told(dlm_eval: Run, tmp_path: Path) -> None:
    result = dlm_eval("sudoku", "--limit", "2", "--gen-length", "500", "--output", str(tmp_path))
    assert "2 prompts were too long for the model and count as failed" in result.stdout
    row = result.stdout.splitlines()[2].split()
    assert row[-6:] == ["-"] * 6
    given = ("sudoku", "--limit", "2", "--gen-length", "500", "--output", str(tmp_path), "--json")
    (told,) = lines(dlm_eval(*given))
    assert [name for name, value in told.items() if value is None and name != "execution"] == [
        "forwards", "query_tokens", "response_tokens_per_forward", "tokens_per_forward",
        "response_tokens_per_second", "tokens_per_second",
    ]  # fmt: skip


def test_a_run_has_a_folder_of_its_own(
    dlm_eval: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        lines(dlm_eval("sudoku", "--limit", "1", "--json", *more))[0]
        for more in ((), ("--seed", "1"), ())
    ]
    folders = [row["folder"] for row in rows]
    assert folders[0] == folders[2] != folders[1]
    assert folders[0].startswith("runs/eval/sudoku-low_confidence-")
    assert len(list((tmp_path / "runs" / "eval").iterdir())) == 2


def test_options_reach_the_decoder(dlm_eval: Run, tmp_path: Path) -> None:
    lines(
        dlm_eval(
            "sudoku", "--limit", "1", "--json", "--output", str(tmp_path), "--block-length", "none",
            "--steps", "3", "--temperature", "0.5", "--top-k", "4", "--seed", "9",
            "--no-stop-at-eos",
        )
    )  # fmt: skip
    run = read_run(tmp_path)
    generation = run.settings["generation"]
    assert generation["block_length"] is None
    assert (generation["steps"], generation["temperature"], generation["top_k"]) == (3, 0.5, 4)
    assert (generation["seed"], generation["stop_at_eos"]) == (9, False)
    assert run.samples[0].forwards == 3


def test_presets_give_what_was_not_given(dlm_eval: Run, tmp_path: Path) -> None:
    given = ("sudoku", "--preset", "wino", "--gen-length", "24", "--limit", "1", "--json")
    lines(dlm_eval(*given, "--output", str(tmp_path)))
    generation = read_run(tmp_path).settings["generation"]
    assert (generation["gen_length"], generation["block_length"]) == (24, 128)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_lists_what_there_is(dlm_eval: Run, task: str) -> None:
    shown = dlm_eval(task, "--list").stdout
    (told,) = lines(dlm_eval(task, "--list", "--json"))
    for template in TASKS[task].templates:
        assert template.name in shown
        assert template.name in [each["name"] for each in told["templates"]]
    for preset in TASKS[task].presets:
        assert preset.name in shown
    assert told["metrics"] == [metric.name for metric in TASKS[task].metrics]


def test_help_lists_every_task(dlm_eval: Run) -> None:
    shown = dlm_eval("--help").stdout
    for name in (*TASKS, "compare", "report"):
        assert f" {name} " in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("sudoko",), "Did you mean 'sudoku'"),
        (("sudoku", "--template", "plane"), "unknown template of sudoku 'plane'. Did you mean"),
        (("sudoku", "--template", "plain", "--template", "plain"), "each template once"),
        (
            ("sudoku", "--template", "all", "--template", "plain"),
            "template must be 'all' alone or names, got ['all', 'plain']",
        ),
        (("sudoku", "--preset", "winoo"), "unknown preset of sudoku 'winoo'. Did you mean 'wino'"),
        (
            ("humaneval", "--preset", "llada-pure"),
            "preset 'llada-pure' of humaneval must be for a model with token 126081",
        ),
        (("sudoku", "--decoder", "sabre"), "unknown decoder 'sabre'. Did you mean 'saber'"),
        (("sudoku", "--option", "x=1"), "unknown option of low_confidence 'x'"),
        (("sudoku", "--limit", "0"), "must be an int >= 1, got '0'"),
        (("sudoku", "--data", "nowhere.csv"), "data must be a file that exists, got"),
        (("sudoku", "--block-length", "many"), "must be an int, got 'many'"),
        (("sudoku", "--temperature", "-1"), "temperature must be a finite number >= 0"),
        (("sudoku", "--block-length", "0"), "block_length must be an int >= 1, got 0"),
        (("sudoku", "--block-length", "-1"), "must be an int >= 1, or none, got '-1'"),
        (("sudoku", "--unsafe"), "--workers and --unsafe are for tasks that run code"),
        (("sudoku", "--workers", "3"), "--workers and --unsafe are for tasks that run code"),
        (("sudoku", "--shots", "x.csv", "--template", "plain"), "--shots is for templates with"),
        (("sudoku", "--gen-length", "512"), "gen_length must be below the model's 512 positions"),
        (("sudoku", "--max-gen-length", "9"), "max_gen_length is for tasks that fill blanks, not"),
        (("sudoku", "--expand-budget", "9"), "expand_budget is for tasks that fill blanks, not"),
        (("humaneval_infill", "--gen-length", "9"), "gen_length is for tasks that go on with a"),
        (("humaneval_infill", "--expand-budget", "9"), "expand_budget goes with max_gen_length"),
        (
            ("humaneval_infill", "--max-gen-length", "9", "--steps", "4"),
            "steps is not for blanks that grow",
        ),
        (("sudoku", "--gen-length", "0"), "gen_length must be an int >= 1, got 0"),
        (("compare", "nowhere"), "compare needs at least two folders, got 1"),
        (
            ("report", "nowhere", "--markdown", "--out", "x"),
            "--markdown prints a table and writes no",
        ),
        (("report", "nowhere"), "'nowhere' must be the folder of a run"),
    ],
)
def test_bad_input_ends_in_one_line(
    dlm_eval: Run, given: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = dlm_eval(
        *given, *([] if given[0] in ("compare", "report") else ["--output", str(tmp_path)])
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_another_run_is_refused(dlm_eval: Run, tmp_path: Path) -> None:
    given = ("sudoku", "--limit", "2", "--output", str(tmp_path))
    assert dlm_eval(*given).exit_code == 0
    for more, message in (
        (("--decoder", "saber"), "holds a run with decoder 'low_confidence', got 'saber'"),
        (("--steps", "5"), "holds a run with steps None, got 5: give another folder"),
        (("--limit", "1"), "--limit must be at least the 2 problems"),
    ):
        result = dlm_eval(*given, *more)
        assert result.exit_code == 2
        assert message in result.stderr


def test_ctrl_c_leaves_a_run_to_go_on_with(
    dlm_eval: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any, **more: Any) -> Any:
        evaluate(*given, **more | {"batch_size": 2, "report": interrupt})

    def interrupt(progress: Any) -> None:
        raise KeyboardInterrupt

    given = ("sudoku", "--limit", "5", "--output", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("dlm.eval.job.evaluate", stopped)
        result = dlm_eval(*given)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert len(read_run(tmp_path).samples) == 2
    assert dlm_eval(*given).exit_code == 0
    assert read_run(tmp_path).complete


def test_runs_are_compared_and_reported(dlm_eval: Run, tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, decoder in zip(folders, ("low_confidence", "threshold"), strict=True):
        assert (
            dlm_eval("sudoku", "--limit", "6", "--decoder", decoder, "--output", folder).exit_code
            == 0
        )
    (found,) = lines(dlm_eval("compare", *folders, "--json"))
    assert (found["baseline"], found["other"], found["pairs"]) == ("low_confidence", "threshold", 6)
    compared = dlm_eval("compare", *folders)
    assert "low_confidence" in compared.stdout
    for told in ("exact McNemar test", "response / forward: response tokens", "batch size 16"):
        assert told in " ".join(compared.stderr.split())
    for out, why in ((tmp_path, "Is a directory"), (tmp_path / "new" / "x", "No such file")):
        refused = dlm_eval("report", *folders, "--out", str(out))
        assert refused.exit_code == 2
        assert "--out must be a file that can be written, got" in refused.stderr
        assert why in " ".join(refused.stderr.split())
        assert not out.with_name("new").exists()
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))
    page = tmp_path / "page.html"
    assert dlm_eval("report", *folders, "--out", str(page)).exit_code == 0
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    rows = lines(dlm_eval("report", *folders, "--out", str(page), "--json"))
    assert [row["decoder"] for row in rows] == ["low_confidence", "threshold"]
    assert {row["page"] for row in rows} == {str(page)}
    refused = dlm_eval("report", *folders, "--markdown", "--json")
    assert "--markdown and --json are two ways" in " ".join(refused.stderr.split())
    table = dlm_eval("report", *folders, "--markdown").stdout
    assert "| threshold" in table
    assert "batch size 16" in table


def test_a_model_may_be_spread_over_devices(dlm_eval: Run, tmp_path: Path) -> None:
    given = ("arithmetic", "--limit", "2", "--decoder", "threshold", "--json")
    plain = lines(dlm_eval(*given, "--output", str(tmp_path / "a")))
    spread = lines(dlm_eval(*given, "--output", str(tmp_path / "b"), "--device-map", "cpu"))
    assert [row["score"] for row in spread] == [row["score"] for row in plain]
    both = ("--device", "cpu", "--device-map", "cpu")
    assert "give device or device_map, not both" in dlm_eval(*given, *both).stderr
    assert "unknown quantize '5bit'" in dlm_eval(*given, "--quantize", "5bit").stderr


def test_processes_do_not_spread_a_model_each(
    dlm_eval: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    told = dlm_eval("arithmetic", "--limit", "2", "--device-map", "auto")
    assert told.exit_code == 2
    assert "device_map goes with one process, got 'auto' in 2" in told.stderr
    told = dlm_eval("arithmetic", "--limit", "2", "--tensor-parallel-size", "2")
    assert "tensor_parallel_size goes with one process, got 2 in 2" in told.stderr
