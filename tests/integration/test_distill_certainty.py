"""`dlm distill certainty`: from prompts to an adapter that `dlm.load` reads."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import dlm
from dlm.cli.corpus import FILE
from dlm.cli.distill_certainty import MERGED, certainty, choose_prompts
from dlm.cli.errors import Commands
from dlm.cli.meter import Display
from dlm.data import TASKS, Example
from dlm.distill import certainty_targets
from dlm.distill.certainty_run import STATE
from dlm.distill.certainty_targets import FILE as TARGETS
from dlm.distill.weights import facts
from dlm.exclusive import alone
from dlm.models.adapter import CONFIG, WEIGHTS
from dlm.training.loop import Progress

SMALL = [
    "--task=sudoku=1", "--prompts=6", "--gen-length=6", "--block-length=3", "--decode-batch=3",
    "--steps=4", "--batch-size=2", "--accumulate=1", "--rank=4", "--alpha=4",
    "--learning-rate=1e-2",
]  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5]])

app = typer.Typer(cls=Commands)
app.command("certainty")(certainty)
app.callback()(lambda: None)


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["certainty", *args], prog_name="dlm")


def run_well(*args: str) -> Any:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_leaves_an_adapter_and_a_merged_model(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [f"--out={out}", f"--model={folder}", *SMALL]
    result = run_well(*args, "--json", "--log-every=2", "--merge")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == folder
    plain = dlm.load(folder).raw_logits(IDS)
    found = dlm.load(folder, adapter=out)
    assert (found.raw_logits(IDS) - plain).abs().max() > 1e-4
    merged = dlm.load(out / MERGED)
    torch.testing.assert_close(merged.raw_logits(IDS), found.raw_logits(IDS), rtol=0, atol=1e-4)
    assert dlm.generate(merged, "Sudoku", gen_length=2).texts
    again = run(*args)
    assert again.exit_code == 2
    assert "holds a run already" in again.stderr
    before = sorted(each.name for each in Path(folder).iterdir())
    beside = run(f"--out={folder}", f"--model={folder}", *SMALL)
    assert beside.exit_code == 2
    assert "holds a model, which no adapter can lie beside" in beside.stderr
    assert sorted(each.name for each in Path(folder).iterdir()) == before
    weights = (out / WEIGHTS).read_bytes()
    done = run_well(*args, "--resume")
    assert (out / WEIGHTS).read_bytes() == weights
    assert f"wrote {out}: load it with dlm.load(..., adapter=" in done.stderr


@pytest.mark.parametrize("when", ["decoding", "training"])
def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_bytes(
    when: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = [f"--model={folder}", *SMALL]
    run_well(f"--out={whole}", *args)
    show, press = Display.show, signal.raise_signal

    def shown(display: Display, step: Progress) -> None:
        show(display, step)
        if step.step == 2:
            press(signal.SIGINT)

    def updated(status: Any, text: str) -> None:
        if text.endswith("3/6"):
            press(signal.SIGINT)

    if when == "training":
        monkeypatch.setattr(Display, "show", shown)
    else:
        monkeypatch.setattr("rich.status.Status.update", updated)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
    try:
        result = run(f"--out={broken}", *args)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "run the same command with --resume" in result.stderr
    monkeypatch.undo()
    run_well(f"--out={broken}", *args, "--resume")
    for name in (TARGETS, CONFIG, WEIGHTS):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_own_prompts(folder: str, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text("".join(f'{{"prompt": "ping {n}", "response": ""}}\n' for n in range(3)))
    out = tmp_path / "out"
    args = [f"--model={folder}", f"--data={data}", f"--out={out}", *SMALL[1:]]
    run_well(*args, "--raw", "--teacher-block-length=none", "--block-length=none")
    lines = [json.loads(line) for line in (out / TARGETS).read_text().splitlines()]
    asked = {"model": folder, "prompts": 3, "chat": False, "gen_length": 6, "block_length": None}
    assert lines[0] == {**facts(dlm.load(folder)), **asked}
    assert [line["right"] for line in lines[1:]] == [None] * 3


def test_wrong_targets_are_left_out(folder: str, tmp_path: Path) -> None:
    """A random network solves no sudoku."""
    result = run(f"--out={tmp_path / 'out'}", f"--model={folder}", *SMALL, "--only-right")
    assert result.exit_code == 2
    assert "--only-right leaves none of 6 targets" in result.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ratio=2", "ratio must be a finite number in [0, 1], got 2.0"),
        ("--resume", "holds no run to resume"),
        ("--layer=nothing", "layers must be among"),
        ("--schedule=sine", "unknown schedule 'sine'"),
        ("--gen-length=5000", "positions, got "),
        ("--seed=99999999999999999999", "seed must be an int <= 4398046511104"),
    ],
)
def test_bad_options_end_in_a_line(option: str, message: str, folder: str, tmp_path: Path) -> None:
    result = run(f"--out={tmp_path / 'out'}", f"--model={folder}", *SMALL, option)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()  # so that the command put right is not refused


@pytest.mark.parametrize("name", [TARGETS, STATE])
def test_what_is_damaged_can_be_deleted(name: str, folder: str, tmp_path: Path) -> None:
    args = [f"--out={tmp_path}", f"--model={folder}", *SMALL]
    run_well(*args)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / name).write_text("[1]\n")
    refused = run(*args, "--resume")
    assert refused.exit_code == 2
    assert f"{tmp_path / name} is damaged" in refused.stderr
    (tmp_path / name).unlink()
    assert "holds a run already" in run(*args).stderr
    run_well(*args, "--resume")
    assert (tmp_path / WEIGHTS).read_bytes() == whole


@pytest.mark.parametrize(
    ("option", "differ"), [("--dtype=bfloat16", "'dtype', 'weights'"), ("--mask-id=6", "'mask_id'")]
)
def test_resuming_with_another_model_is_refused(
    option: str, differ: str, folder: str, tmp_path: Path
) -> None:
    args = [f"--out={tmp_path}", f"--model={folder}", *SMALL]
    run_well(*args)
    result = run(*args, "--resume", option)
    assert result.exit_code == 2
    assert f"these differ: [{differ}]" in result.stderr


def test_prompts_are_different_and_shared_out() -> None:
    own = [Example("own", text, "") for text in ("a", "a \n", "b", "b", "c")]
    held = frozenset({"a "})
    found = choose_prompts({"sudoku": 3.0, FILE: 1.0}, own, held, 8, seed=0)
    assert [each.task for each in found] == ["sudoku"] * 6 + [FILE] * 2
    assert [each.prompt for each in found[6:]] == ["b", "c"]
    assert len({each.prompt for each in found}) == 8
    less = choose_prompts({"sudoku": 1.0}, (), frozenset({found[0].prompt}), 6, seed=0)
    assert found[0] not in less
    assert less[:5] == found[1:6]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100, 103])
def test_prompts_are_as_many_as_asked_for(count: int) -> None:
    tasks = dict.fromkeys(TASKS, 1.0)
    found = Counter(each.task for each in choose_prompts(tasks, (), frozenset(), count, seed=0))
    assert found.total() == count
    assert all(abs(found[name] - count / len(tasks)) < 1 for name in tasks)


def test_a_task_with_few_prompts_leaves_the_others_their_shares() -> None:
    own = [Example("own", "a", "")]
    found = choose_prompts({FILE: 1.0, "sudoku": 1.0}, own, frozenset(), 6, seed=0)
    assert [each.task for each in found] == [FILE, *["sudoku"] * 3]


def test_no_rule_of_a_built_in_task_is_for_own_prompts(folder: str, tmp_path: Path) -> None:
    data, out = tmp_path / "arithmetic.jsonl", tmp_path / "out"
    data.write_text('{"prompt": "Who are you?", "response": ""}\n')
    args = [f"--model={folder}", f"--data={data}", f"--out={out}", *SMALL[1:]]
    refused = run(*args, "--only-right")
    assert refused.exit_code == 2
    assert "--only-right is for tasks that tell what is right" in refused.stderr
    assert not out.exists()
    run_well(*args)
    (target,) = (out / TARGETS).read_text().splitlines()[1:]
    assert json.loads(target)["right"] is None


def test_a_second_run_in_the_folder_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [f"--out={tmp_path}", f"--model={folder}", *SMALL]
    with alone(tmp_path):
        result = run(*args)
    assert result.exit_code == 2
    assert f"{str(tmp_path)!r} must be of one run at a time" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    show = Display.show

    def shown(display: Display, step: Progress) -> None:
        show(display, step)
        second.append(run(*args, "--resume"))

    second: list[Any] = []
    monkeypatch.setattr(Display, "show", shown)
    run_well(*args, "--merge")
    assert [each.exit_code for each in second] == [2] * 4
    assert "one run at a time" in second[0].stderr
    monkeypatch.undo()
    run_well(*args, "--resume")  # a lock that is left behind is none


def test_a_run_that_began_behind_the_check_is_seen(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [f"--out={tmp_path}", f"--model={folder}", *SMALL]
    encode = certainty_targets.encode

    def late(*given: Any, **more: Any) -> Any:
        monkeypatch.undo()
        run_well(*args)
        return encode(*given, **more)

    monkeypatch.setattr(certainty_targets, "encode", late)
    result = run(*args)
    assert result.exit_code == 2
    assert "holds a run already" in result.stderr


def test_other_processes_of_a_run_leave_its_folder_to_the_first(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They neither lock it nor take what the first one has written for another run."""
    args = [f"--out={tmp_path}", f"--model={folder}", *SMALL]
    run_well(*args)
    (tmp_path / STATE).unlink()
    monkeypatch.setattr("dlm.cli.distill_certainty.first_process", lambda base: False)
    with alone(tmp_path):
        assert run_well(*args).stderr.count("wrote") == 0
