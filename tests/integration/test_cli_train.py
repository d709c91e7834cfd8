"""`dlm train`: what it writes, shows and survives."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli.meter import Display, Meter, duration
from dlm.models.loading import BUILT_IN, load
from dlm.training.loop import Progress

TOKENIZER = Path(dlm.__file__).parent / "assets" / BUILT_IN

PUZZLE = "Sudoku: 3102200002100320"
SMALL = ["--layers=1", "--width=32", "--heads=2", "--mlp-width=64", "--tokens-per-batch=256"]


def run(*args: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, list(args), input=stdin, prog_name="dlm")


def run_well(*args: str, stdin: str = "") -> Any:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_train_writes_a_model_that_generates(tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "ping", "response": "pong"}\n')
    out = str(tmp_path / "out")
    args = ["train", "--out", out, "--data", str(data), "--steps=5", *SMALL]
    result = run_well(*args, "--json", "--log-every=2")
    rows = records(result.stdout)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert {(row["task"], row["steps"]) for row in rows} == {("file", 5)}
    assert rows[-1]["seconds_left"] == 0
    assert result.stderr == ""
    run_well("generate", "ping", "--chat", "--model", out, "--gen-length=2")
    again = run(*args)
    assert again.exit_code == 2
    assert "holds a run already" in again.stderr


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    found = run("train", "--out", str(tmp_path / "out"), "--task=sudoku=1", "--steps=1", *SMALL)
    assert found.exit_code == 2
    assert "must be a folder, got the file" in found.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_train_without_a_terminal_prints_plain_lines(tmp_path: Path) -> None:
    args = ["--task=sudoku=2", "--task=countdown=1", "--steps=3", "--log-every=2"]
    result = run_well("train", "--out", str(tmp_path / "out"), *args, *SMALL)
    assert result.stdout == ""
    first, last, done = result.stderr.splitlines()
    assert first.startswith("step 2/3  loss ")
    assert last.startswith("step 3/3  loss ")
    assert done.startswith("wrote ")


def test_the_bar_leaves_stdout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    steps = ["--steps=2", "--log-every=1", "--task=sudoku=1", *SMALL]
    result = run_well("train", "--out", str(tmp_path / "out"), "--json", *steps)
    assert [row["step"] for row in records(result.stdout)] == [1, 2]
    assert "step 2/2  loss" in result.stderr


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--task=sudoku=1", "--steps=4", "--warmup=0", *SMALL]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_well("train", "--out", str(whole), *args)
    before = signal.getsignal(signal.SIGINT)
    show = Display.show

    def press(display: Display, step: Progress) -> None:
        show(display, step)
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "show", press)
    result = run("train", "--out", str(broken), *args)
    assert result.exit_code == 130
    assert "run the same command with --resume" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    run_well("train", "--out", str(broken), *args, "--resume")
    for name, weight in load(str(whole)).network.state_dict().items():
        assert torch.equal(weight, load(str(broken)).network.state_dict()[name]), name


def test_own_data_needs_a_share_and_something_to_train_on(tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text("")
    empty = run("train", "--out=o", f"--data={data}")
    assert "holds no example to train on" in empty.stderr
    shareless = run("train", "--out=o", f"--data={data}", "--task=sudoku=1")
    assert "give --task file=SHARE" in shareless.stderr


def test_meter_smooths_and_foresees() -> None:
    meter = Meter(100)
    for step in range(1, 11):
        reading = meter.read(Progress(step, "sudoku", 2.0, 1000.0, 1e-3))
    assert reading.smoothed_loss == pytest.approx(2.0)
    assert reading.tokens_per_second == pytest.approx(1000.0)
    assert reading.seconds_left == pytest.approx(9 * reading.seconds, rel=0.5)
    assert (duration(59.7), duration(3725)) == ("1:00", "1:02:05")


def test_init_starts_from_a_trained_model(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    args = ["--steps=12", "--task=sudoku=1", "--warmup=2", "--json", "--log-every=1"]
    learned = records(run_well("train", "--out", first, *args, *SMALL).stdout)
    further = records(run_well("train", "--out", second, "--init", first, *args, SMALL[-1]).stdout)
    assert further[0]["loss"] < learned[0]["loss"]


@pytest.mark.parametrize(
    ("family", "found"),
    [("dream", "shift=True"), ("sdar", "block_size="), ("encoder", "suffix=(3,)")],
)
def test_init_is_a_model_that_the_objective_is_for(
    written: Callable[[str], Path], tmp_path: Path, family: str, found: str
) -> None:
    result = run("train", "--out", str(tmp_path / "out"), "--init", str(written(family)))
    assert result.exit_code == 2, result.output
    rule = "--init must be a model that predicts the token itself and sees both ways, got one of "
    told = " ".join(result.stderr.split())
    assert rule in told
    assert found in told.partition(rule)[2]


def test_another_shape_of_the_same_weights_does_not_go_on(tmp_path: Path) -> None:
    out = ["train", "--out", str(tmp_path / "out"), "--task=sudoku=1", "--steps=2"]
    run_well(*out, *SMALL)
    result = run(*out, *SMALL, "--heads=4", "--resume")
    assert result.exit_code == 2
    assert "these differ: ['network.n_heads', 'network.n_kv_heads']" in result.stderr


def test_a_cut_checkpoint_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "training_state.pt").write_bytes(b"PK")
    result = run("train", "--out", str(tmp_path), "--task=sudoku=1", "--resume", *SMALL)
    assert result.exit_code == 2
    assert "is damaged: delete it" in result.stderr
