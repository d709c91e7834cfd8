"""`dlm distill schedule`: what it writes, shows, goes on from and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli.loading import load_model
from dlm.data import generate_examples
from dlm.decoders.artefact import ScheduleArtefact
from dlm.distill import schedule_measure
from dlm.distill.schedule_ledger import Ledger
from dlm.distill.weights import checksum
from dlm.exclusive import alone

PROMPTS = [example.prompt for example in generate_examples("sudoku", 3, count=6)]
SMALL = ["--gen-length", "12", "--block-length", "none", "--batch-size", "3", "--refreshes", "1"]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["distill", "schedule", *args], prog_name="dlm")


def run_well(*args: str) -> Any:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    return str(path)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from dlm.cli import app\n"
        "try:\n"
        "    app(['distill', 'schedule', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_one_schedule_a_budget_that_generate_plays(prompts: str, tmp_path: Path) -> None:
    result = run_well(
        "--file", prompts, "--budget", "2,3", "--out", str(tmp_path), "--json", *SMALL
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["budget"] for row in rows] == [2, 3]
    assert "teacher: 6/6" in result.stderr
    for row in rows:
        path = tmp_path / f"schedule-{row['budget']}.json"
        made = ScheduleArtefact.load(path)
        assert row["out"] == str(path)
        assert row["reveal"] == list(made.reveal)
        assert row["checksum"] == made.checksum
        assert row["error"]["realised"] <= row["error"]["uniform"]
        training = json.loads(made.training)
        assert training["n_prompts"] == 6
        assert training["teacher_steps"] == 12
        assert made.model.id == "built-in"
        out = dlm.generate(
            dlm.load(), [{"role": "user", "content": PROMPTS[0]}], decoder="schedule",
            decoder_options={"path": path}, gen_length=12, block_length=None, stop_at_eos=False,
        )  # fmt: skip
        assert out.forwards == [row["budget"]]


def test_people_get_lines_and_a_picture(prompts: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    args = ["--file", prompts, "--budget", "2", "--out", str(tmp_path), "--plot", *SMALL]
    result = run_well(*args)
    assert result.stdout.startswith("2 forwards: reveal ")
    assert "use it with --decoder schedule" in result.stderr
    picture = (tmp_path / "schedule-2.svg").read_bytes()
    assert b"<svg" in picture
    schedule = (tmp_path / "schedule-2.json").read_bytes()
    # All trajectories are there, so nothing is decoded again, and nothing differs.
    run_well(*args)
    assert (tmp_path / "schedule-2.svg").read_bytes() == picture
    assert (tmp_path / "schedule-2.json").read_bytes() == schedule


def test_another_recipe_does_not_take_up_old_trajectories(prompts: str, tmp_path: Path) -> None:
    args = ["--file", prompts, "--budget", "2", "--out", str(tmp_path)]
    run_well(*args, *SMALL, "--no-scale")
    result = run(*args, *SMALL, "--base-policy", "margin")
    assert result.exit_code == 2
    assert "base_policy differ" in result.stderr


def test_trajectories_of_another_network_are_not_taken_up(
    prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--file", prompts, "--budget", "2", "--out", str(tmp_path), *SMALL, "--no-scale"]
    run_well(*args)

    def load_another(*some: Any, **more: Any) -> Any:
        model = load_model(*some, **more)
        weight = model.network.get_input_embeddings().weight
        assert weight.numel() > 4096
        with torch.no_grad():
            weight[-1, -1] += 1  # far behind the first values
        return model

    monkeypatch.setattr("dlm.cli.distill.load_model", load_another)
    result = run(*args)
    assert result.exit_code == 2
    assert "options: weights differ" in result.stderr


def test_a_second_run_in_the_folder_is_refused(prompts: str, tmp_path: Path) -> None:
    args = ["--file", prompts, "--budget", "2", "--out", str(tmp_path), *SMALL, "--no-scale"]
    with alone(tmp_path / "trajectories"):
        result = run(*args)
    assert result.exit_code == 2
    assert "one run at a time" in result.stderr
    assert str(tmp_path) in result.stderr
    run_well(*args)


def test_ctrl_c_stops_between_batches_and_the_same_command_goes_on(
    prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = ["--file", prompts, "--budget", "2", *SMALL]
    run_well(*args, "--out", str(whole))
    add = Ledger.add

    def add_and_interrupt(self: Ledger, rows: Any) -> None:
        add(self, rows)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Ledger, "add", add_and_interrupt)
    result = run(*args, "--out", str(broken))
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert not (broken / "schedule-2.json").exists()
    assert len((broken / "trajectories" / "teacher.jsonl").read_text().splitlines()) == 4
    monkeypatch.undo()
    run_well(*args, "--out", str(broken))
    name = "schedule-2.json"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


SHIPPED = sorted((Path(dlm.__file__).parent / "assets" / "schedules").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_schedules_are_of_the_built_in_model(path: Path) -> None:
    model = dlm.load()
    made = ScheduleArtefact.load(path)
    made.check_model(model.spec.vocab_size, model.spec.mask_id)
    assert json.loads(made.training)["weights"] == checksum(model)
    assert path.stem.endswith(f"-{made.steps}")
    assert made.gen_length == 64


def test_a_schedule_is_shipped() -> None:
    assert SHIPPED


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(prompts: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = ["--file", prompts, "--budget", "3", *SMALL]
    run_well(*args, "--out", str(whole))
    command = [sys.executable, "-m", "dlm", "distill", "schedule", *args, "--out", str(broken)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    teacher = broken / "trajectories" / "teacher.jsonl"
    limit = time.monotonic() + 120
    while not teacher.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert teacher.exists()
    run_well(*args, "--out", str(broken))
    name = "schedule-3.json"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--budget", "2,2"], "--budget must have each budget once, got '2,2'"),
        (["--budget", "2,x"], "--budget must be ints with commas between, got '2,x'"),
        (["--budget", "2,"], "--budget must be ints with commas between, got '2,'"),
        (["--budget", "13"], "at most 12"),
        (["--budget", "2", "--base-policy", "random"], "unknown base_policy"),
        (["--budget", "2", "--relax", "0.05"], "at least one token"),
        (["--budget", "2", "--refreshes", "4"], "refreshes must be"),
        (["--budget", "2", "--seed", "0"], "seed is for the states that relax tries"),
        (["--budget", "2", "--no-scale", "--no-scale-confidence"], "without scale"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line(
    prompts: str, tmp_path: Path, args: list[str], says: str
) -> None:
    result = run("--file", prompts, "--out", str(tmp_path), *SMALL, *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_measurement_prints_a_table(
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule_measure, "CALIBRATION", 2)
    run_well("--file", prompts, "--budget", "2", "--out", str(tmp_path), *SMALL)
    schedule_measure.main(
        ["--task", "sudoku", "--schedules", str(tmp_path), "--budget", "2", "--gen-length", "12",
         "--count", "4"]
    )  # fmt: skip
    head, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert cells[0][2] == "decoder"
    assert [row[2] for row in cells[1:3]] == ["low_confidence, even steps", "schedule"]
    assert cells[1][5] == ""
    assert all(row[5].endswith("]") for row in cells[2:])
    assert all(float(row[3]) <= 2 for row in cells[1:3])  # rivals are matched elsewhere


def test_the_measurement_takes_shipped_schedules_and_misses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path(dlm.__file__).parent / "assets" / "schedules"
    assert schedule_measure.schedule_of(shipped, "functions", 8) == shipped / "functions-8.json"
    with pytest.raises(SystemExit):
        schedule_measure.main(["--task", "sudoku", "--schedules", str(tmp_path), "--budget", "2"])
    told = capsys.readouterr().err
    assert f"--schedules must hold schedule-2.json, got {tmp_path}" in told


def test_intervals_and_diversity() -> None:
    low, high = schedule_measure.interval([False] * 50 + [True] * 50, [True] * 100)
    assert 0.3 < low < 0.5 < high < 0.7
    assert schedule_measure.interval([True], [True]) == (0, 0)
    assert schedule_measure.entropy([[1, 2], [1, 2]]) == pytest.approx(0.6931, abs=1e-4)
    assert schedule_measure.distinct([[1, 2, 1, 2], [1, 2]]) == pytest.approx(2 / 4)
