"""`dlm generate --regex`, `--choice` and `--json-schema`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dlm.cli import app

SHORT = ("--gen-length=24", "--temperature=1.0", "--decoder=threshold")
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["generate", *args], prog_name="dlm")


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(path)


def test_answers_are_of_the_language(schema: str) -> None:
    ways: dict[str, Callable[[str], Any]] = {
        "--regex=[0-9]{4}": lambda text: re.fullmatch("[0-9]{4}", text),
        "--choice=yes": lambda text: text == "yes",
        f"--json-schema={schema}": lambda text: set(json.loads(text)) == {"age"},
    }
    for way, holds in ways.items():
        result = run("When?", "Or not?", *SHORT, way, "--json")
        assert result.exit_code == 0, result.output
        for line in result.stdout.splitlines():
            assert holds(json.loads(line)["text"]), line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--regex=a", "--choice=a"), "give one of --regex and --choice"),
        (("--regex=a(",), "regex must be a regular expression"),
        (("--regex=a{30}",), "its shortest text 30"),
        (("--json-schema=nowhere.json",), "--json-schema must be a file"),
        (("--regex=a", "--confidence-eos-eot-inf"), "confidence_eos_eot_inf must be off"),
    ],
)
def test_what_cannot_be_is_refused(args: tuple[str, ...], message: str) -> None:
    result = run("When?", *SHORT, *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_empty_text_is_one() -> None:
    result = run("When?", *SHORT, "--regex=")
    assert result.exit_code == 0
    assert result.stdout == "\n"


def test_a_schema_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b"\xff")
    result = run("When?", *SHORT, f"--json-schema={path}")
    assert result.exit_code == 2
    assert "--json-schema must be UTF-8" in result.stderr


def test_blanks_are_held_to_none() -> None:
    result = run("a [MASK]", "--infill", "--regex=a")
    assert result.exit_code == 2
    assert "constraint is for generate" in result.stderr
