"""`dlm eval --preset`: the decoder and the template of a paper, by one word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.eval.folder import read_run
from dlm.eval.tasks import TASKS

Run = Callable[..., Result]
SHORT = ("--gen-length", "20", "--limit", "2")
PUBLISHED = {"threshold": 0.7, "threshold_back": 0.9}  # of wino, for sudoku


@pytest.fixture(scope="module")
def dlm_eval() -> Run:
    app = typer.Typer(cls=Commands)
    attach(app)
    runner = CliRunner()

    def run(*given: str) -> Result:
        return runner.invoke(app, ["eval", *given], prog_name="dlm")

    return run


def ran(result: Result, folder: Path) -> dict[str, Any]:
    """The settings of a run that has ended well."""
    assert result.exit_code == 0, result.output
    return dict(read_run(folder).settings)


@pytest.mark.parametrize(
    ("given", "decoder", "options"),
    [
        ((), "wino", PUBLISHED),
        (("--decoder", "wino"), "wino", PUBLISHED),
        (("--option", "threshold=0.5"), "wino", PUBLISHED | {"threshold": 0.5}),
        (("--decoder", "low_confidence"), "low_confidence", {}),
        (
            ("--decoder", "threshold", "--option", "threshold=0.8"),
            "threshold",
            {"threshold": 0.8},
        ),
    ],
)
def test_a_preset_brings_its_decoder(
    dlm_eval: Run, given: tuple[str, ...], decoder: str, options: dict[str, Any], tmp_path: Path
) -> None:
    result = dlm_eval("sudoku", "--preset", "wino", *given, *SHORT, "--output", str(tmp_path))
    found = ran(result, tmp_path)
    assert (found["decoder"], found["decoder_options"]) == (decoder, options)
    assert found["generation"]["block_length"] == 128
    told = ", ".join(f"{name}={value}" for name, value in options.items())
    assert (f"{decoder}({told})" if told else decoder) in result.stdout


def test_the_decoder_of_a_preset_is_what_decodes(dlm_eval: Run, tmp_path: Path) -> None:
    """Of two problems WINO's shadows cost query tokens, and its drafts spare forwards."""
    folders = [tmp_path / name for name in ("preset", "named", "one-by-one")]
    named = ["--decoder", "wino", "--option", "threshold=0.7", "--option", "threshold_back=0.9"]
    more = [["--preset", "wino"], ["--block-length", "128", *named], ["--block-length", "128"]]
    for folder, given in zip(folders, more, strict=True):
        ran(dlm_eval("sudoku", *given, *SHORT, "--output", str(folder)), folder)
    preset, named_run, plain = (read_run(folder) for folder in folders)
    assert preset.hash == named_run.hash != plain.hash
    keep = [(each.tokens, each.forwards, each.query_tokens) for each in preset.samples]
    assert keep == [(each.tokens, each.forwards, each.query_tokens) for each in named_run.samples]
    assert sum(x.forwards for x in preset.samples) < sum(x.forwards for x in plain.samples)


def test_a_run_of_a_preset_goes_on_and_is_compared(dlm_eval: Run, tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b")]
    usual = ("sudoku", "--preset", "wino", *SHORT)
    assert dlm_eval(*usual, "--decoder", "low_confidence", "--output", folders[0]).exit_code == 0
    assert dlm_eval(*usual, "--output", folders[1]).exit_code == 0
    before = (tmp_path / "b" / "samples.jsonl").read_text()
    again = dlm_eval(*usual, "--output", folders[1], "--limit", "3")
    assert again.exit_code == 0, again.output
    lines = (tmp_path / "b" / "samples.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 3
    assert set(before.splitlines(keepends=True)) < set(lines)
    refused = dlm_eval(*usual, "--output", folders[0])
    assert refused.exit_code == 2
    assert "holds a run with decoder 'low_confidence', got 'wino'" in refused.stderr
    (found,) = [json.loads(x) for x in dlm_eval("compare", *folders, "--json").stdout.splitlines()]
    assert (found["baseline"], found["other"]) == (
        "low_confidence", "wino(threshold=0.7, threshold_back=0.9)"
    )  # fmt: skip


def test_a_run_begun_without_a_decoder_goes_on(dlm_eval: Run, tmp_path: Path) -> None:
    """The settings are what they were, whichever way they are given."""
    for given in ((), ("--decoder", "low_confidence"), ("--preset", "built-in")):
        result = dlm_eval("sudoku", *given, "--limit", "2", "--output", str(tmp_path))
        found = ran(result, tmp_path)
        assert (found["decoder"], found["decoder_options"]) == ("low_confidence", {})
        assert len(read_run(tmp_path).samples) == 2


def test_a_preset_brings_its_template(dlm_eval: Run, tmp_path: Path) -> None:
    rows = [
        json.dumps({"question": f"{n} and {n}?", "answer": f"#### {2 * n}"}) for n in range(1, 10)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(rows[5:]))
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(rows[:5]))
    given = (
        "gsm8k", "--preset", "fast-dllm", "--data", str(tmp_path / "test.jsonl"), "--limit", "1",
        "--gen-length", "8",
    )  # fmt: skip
    for more, template in (((), "base_5shot"), (("--template", "chat_cot"), "chat_cot")):
        folder = tmp_path / template
        found = ran(dlm_eval(*given, *more, "--output", str(folder)), folder)
        assert (found["templates"], found["decoder"]) == ([template], "threshold")


def test_an_option_that_the_decoder_of_the_preset_lacks(dlm_eval: Run, tmp_path: Path) -> None:
    given = ("sudoku", "--preset", "wino", "--output", str(tmp_path))
    result = dlm_eval(*given, "--option", "radius=4")
    assert result.exit_code == 2
    assert "unknown option of wino 'radius'" in result.stderr
    result = dlm_eval(*given, "--cache", "dual")
    assert result.exit_code == 2
    assert "cache" in result.stderr


def test_the_list_has_decoders_and_templates(dlm_eval: Run) -> None:
    shown = dlm_eval("gsm8k", "--list").stdout
    head = next(line for line in shown.splitlines() if line.startswith("preset"))
    assert head.split() == ["preset", "decoder", "options", "template", "reported", "source"]
    (row,) = (line for line in shown.splitlines() if line.startswith("wino "))
    assert "wino(threshold=0.6, threshold_back=0.9)" in row
    assert " default " in row
    (row,) = (line for line in shown.splitlines() if line.startswith("fast-dllm "))
    assert "threshold(threshold=0.9)" in row
    assert "base_5shot" in row


@pytest.mark.parametrize("task", TASKS)
def test_the_list_for_machines(dlm_eval: Run, task: str) -> None:
    told = json.loads(dlm_eval(task, "--list", "--json").stdout)["presets"]
    for each, preset in zip(told, TASKS[task].presets, strict=True):
        assert each["name"] == preset.name
        assert (each["decoder"], each["decoder_options"]) == (
            preset.decoder, preset.decoder_options
        )  # fmt: skip
        assert each["template"] == preset.template
        assert not {"decoder", "decoder_options"} & set(each["options"])
        assert each["options"].get("gen_length") == preset.options.get("gen_length")
