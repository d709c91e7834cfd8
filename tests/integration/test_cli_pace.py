"""`dlm generate`: the bar for people who wait."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from dlm.cli import app, pace

WAYS: dict[str, tuple[list[str], str]] = {
    "a prompt": (["1+1=", "--gen-length=9"], "9 of 9 tokens"),
    "prompts": (["1+1=", "2+2=", "3+3=", "--gen-length=9"], "27 of 27 tokens, 2 of 3 prompts"),
    "blanks": (["1+[MASK:3]=4", "2+[MASK:2]=3", "--infill"], "5 of 5 tokens, 1 of 2 texts"),
}


def run(*args: str) -> Any:
    flags = ["--no-stop-at-eos", "--batch-size=1", "--json"]
    result = CliRunner().invoke(app, ["generate", *args, *flags], prog_name="dlm")
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar from the first forward on, and new at each."""
    monkeypatch.setattr(pace, "PATIENCE", 0.0)
    monkeypatch.setattr(pace, "LOOK", 0.0)


def without_seconds(text: str) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_a_terminal_is_told_of_tokens(
    eager: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    args, told = WAYS[way]
    plain = run(*args)
    assert plain.stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    shown = run(*args)
    assert told in shown.stderr
    assert without_seconds(shown.stdout) == without_seconds(plain.stdout)


def test_a_terminal_that_draws_nothing_is_left_alone(
    eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert "\n\n" not in run("1+1=", "2+2=", "--gen-length=9").stderr


def test_who_does_not_wait_sees_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PATIENCE", 600.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "tokens" not in run("1+1=", "--gen-length=9").stderr
