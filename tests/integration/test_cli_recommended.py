"""`--recommended`, and what `dlm models` says of it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli import chat as chatting
from dlm.cli import generate as generating
from dlm.cli import serve as serving
from dlm.cli.errors import Commands
from dlm.eval.cli import attach

LLADA21 = "inclusionAI/LLaDA2.1-mini"


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args), prog_name="dlm")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command would decode by, instead of decoding."""
    found: dict[str, Any] = {}

    class Job:
        def __init__(self, rows: Any, options: dict[str, Any], **more: Any) -> None:
            found.update(options)

        def check(self) -> None: ...
        def run(self, *given: Any, **options: Any) -> None: ...

    def serve(model: Any, listener: Any, name: str, defaults: dict[str, Any], *rest: Any) -> None:
        found.update(defaults)

    def converse(conversation: Any, **options: Any) -> bool:
        found.update(conversation.options)
        return True

    def evaluate(self: Any) -> None:
        found.update(self.options)

    monkeypatch.setattr("dlm.eval.job.Job.run", evaluate)
    for command in (generating, chatting, serving):
        monkeypatch.setattr(command, "load_model", lambda *given, **facts: dlm.load())
    monkeypatch.setattr(generating, "Job", Job)
    monkeypatch.setattr(chatting, "talk", converse)
    monkeypatch.setattr(serving, "listening", lambda host, port: nullcontext())
    monkeypatch.setattr(serving, "run", serve)
    return found


COMMANDS = [("generate", "a prompt"), ("chat",), ("serve",)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_decodes_as_the_authors_do(asked: dict[str, Any], command: Any) -> None:
    result = run(*command, "--model", LLADA21, "--recommended")
    assert result.exit_code == 0, result.output
    advice = dlm.recommended(LLADA21)
    assert {name: asked[name] for name in advice} == advice
    assert asked["gen_length"] == 256  # of which the authors say nothing
    assert {"steps", "top_p"}.isdisjoint(asked)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_is_said_wins(asked: dict[str, Any], command: Any) -> None:
    """Even where it says what is the default."""
    given = ("--cache=none", "--option=editing_threshold=0.9", "--gen-length=8", "--temperature=1")
    result = run(*command, "--model", LLADA21, "--recommended", *given)
    assert result.exit_code == 0, result.output
    assert asked["cache"] == "none"
    assert asked["decoder"] == "block_refinement"
    own = {"threshold": 0.7, "editing_threshold": 0.9, "max_post_steps": 16}
    assert asked["decoder_options"] == own
    assert (asked["gen_length"], asked["temperature"]) == (8, 1.0)


def test_options_of_their_decoder_are_not_for_another(asked: dict[str, Any]) -> None:
    given = ("--decoder=threshold", "--option=threshold=0.6")
    result = run("generate", "a", "--model", LLADA21, "--recommended", *given)
    assert result.exit_code == 0, result.output
    assert (asked["decoder"], asked["decoder_options"]) == ("threshold", {"threshold": 0.6})
    assert asked["cache"] == "prefix"


def test_their_length_is_taken_and_not_for_blanks(asked: dict[str, Any]) -> None:
    dream = ("--model", "Dream-org/Dream-v0-Instruct-7B", "--recommended")
    assert run("generate", "a", *dream).exit_code == 0
    assert (asked["gen_length"], asked["block_length"]) == (512, None)
    asked.clear()
    assert run("generate", "a [MASK]", "--infill", *dream).exit_code == 0
    assert "gen_length" not in asked
    assert asked["top_p"] == 0.95


def test_an_evaluation_decodes_as_the_authors_do(asked: dict[str, Any]) -> None:
    """What the command line says wins; how many blanks there are a task says itself."""
    evaluations = typer.Typer(cls=Commands)
    attach(evaluations)

    def evaluate(*args: str) -> Any:
        return CliRunner().invoke(evaluations, ["eval", *args], prog_name="dlm")

    given = ("--model", LLADA21, "--recommended", "--suppress-tokens=3", "--logit-bias=4=1.5")
    result = evaluate("gsm8k", *given, "--cache=none")
    assert result.exit_code == 0, result.output
    advice = dlm.recommended(LLADA21) | {"cache": "none"}
    assert {name: asked[name] for name in advice} == advice
    assert (asked["suppress_tokens"], asked["logit_bias"]) == ([3], {"4": 1.5})
    asked.clear()
    dream = ("--model", "Dream-org/Dream-v0-Instruct-7B", "--recommended")
    assert evaluate("humaneval_infill", *dream).exit_code == 0
    assert "gen_length" not in asked
    assert asked["top_p"] == 0.95


def test_without_it_nothing_changes(asked: dict[str, Any]) -> None:
    assert run("generate", "a", "--model", LLADA21).exit_code == 0
    assert (asked["decoder"], asked["block_length"], asked["cache"]) == (
        "low_confidence", 32, "none",
    )  # fmt: skip


@pytest.mark.parametrize(("model", "message"), [
    ((), "no settings are published for the built-in model: use the defaults"),
    (("--model", "GSAI-ML/LLaDA-8B"), "unknown checkpoint with recommended settings"),
])  # fmt: skip
def test_a_model_of_which_nothing_is_known_is_refused(
    asked: dict[str, Any], model: tuple[str, ...], message: str
) -> None:
    result = run("generate", "a", *model, "--recommended")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not asked


def test_a_folder_of_that_name_decodes(folder: str, tmp_path: Path) -> None:
    place = tmp_path / "LLaDA2.1-mini"
    shutil.copytree(folder, place)
    given = ("--model", str(place), "--gen-length=6", "--no-stop-at-eos", "--json")
    found = run("generate", "Sudoku: 3102200002100320", "--recommended", *given)
    assert found.exit_code == 0, found.output
    options = dlm.recommended(place) | {"gen_length": 6, "stop_at_eos": False}
    again = dlm.generate(dlm.load(place), "Sudoku: 3102200002100320", **options)
    assert json.loads(found.stdout)["tokens"] == again.tokens[0]


def test_models_tell_of_it() -> None:
    text = run("models", "dream-coder").stdout
    assert "recommended for Dream-org/Dream-Coder-v0-Instruct-7B:" in text
    assert "gen_length=768, block_length=None, temperature=0.1, top_p=0.95 (alg=entropy)" in text
    assert "From README of DreamLM/Dream-Coder." in text
    assert "recommended" not in run("models").stdout
    base, instruct = map(json.loads, run("models", "LLaDA-8B", "--json").stdout.splitlines()[:2])
    assert base["recommended"] is None
    assert instruct["recommended"]["options"] == dlm.recommended("GSAI-ML/LLaDA-8B-Instruct")
    assert instruct["recommended"]["source"] == "chat.py of ML-GSAI/LLaDA"
