"""Text that UTF-8 cannot hold ends a command in a line that names its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dlm.cli import app
from dlm.cli.inputs import parse_value, read_prompts

HALF = "a\ud800"  # half a pair of surrogates
DEEP = "[" * 200_000  # deeper than Python's JSON reads


def refused(*args: str, stdin: bytes = b"") -> str:
    result: Any = CliRunner().invoke(app, list(args), input=stdin, prog_name="dlm")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.mark.parametrize("command", [["generate"], ["distill", "schedule"]])
def test_prompts_of_the_command_line(command: list[str], tmp_path: Path) -> None:
    more = ["--budget=3", f"--out={tmp_path}"] if command[0] == "distill" else []
    told = refused(*command, "fine", "a\udcff", *more)
    assert "prompt 2 of the command line must be text that UTF-8 can hold" in told
    assert r"got '\udcff' at character 2" in told


def test_prompts_of_a_pipe() -> None:
    assert "stdin must be UTF-8: " in refused("generate", stdin=b"a\xff")
    told = refused("generate", stdin=json.dumps({"prompt": HALF}).encode())
    assert 'stdin:1: "prompt" must be text that UTF-8 can hold' in told


def test_a_line_of_a_conversation() -> None:
    """Which goes on behind it."""
    given = b"Sudoku: 3102200002100320\n\xff\nSudoku: 3102200002100320\n"
    result = CliRunner().invoke(app, ["chat", "--gen-length=20", "--json"], input=given)
    assert result.exit_code == 2
    assert "error: line 2 of stdin must be UTF-8: " in result.stderr
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"prompt": HALF}, '"prompt"'),
        ({"messages": [{"role": "user", "content": HALF}]}, '"content" of "messages"'),
        ({"messages": [{"role": HALF, "content": ""}]}, '"role" of "messages"'),
    ],
)
def test_prompts_of_a_file(record: dict[str, Any], place: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps(record) + "\n")
    told = refused("generate", "--file", str(file))
    assert rf"prompts:2: {place} must be text that UTF-8 can hold, got '\ud800'" in told


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_an_id_that_json_has_not_is_refused(number: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a", "id": {number}}}\n')
    told = refused("generate", "--file", str(file))
    assert "prompts.jsonl:1 must be a JSON object, as all lines or none: numbers must be f" in told


@pytest.mark.parametrize(("name", "first"), [("deep.jsonl", ""), ("deep", '{"prompt": "a"}\n')])
def test_prompts_that_are_too_deep_are_refused(name: str, first: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(first + DEEP + "\n")
    line = 1 + first.count("\n")
    told = refused("generate", "--file", str(file))
    assert f"{name}:{line} must be a JSON object, as all lines or none: maximum recursion" in told


def test_a_first_line_that_is_too_deep_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "deep.txt"
    file.write_text(DEEP + "\n")
    assert read_prompts([], file) == [DEEP]
    assert parse_value(DEEP) == DEEP
