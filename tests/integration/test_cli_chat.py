"""`dlm chat`: turns from a pipe and at a terminal."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli import chat as command
from dlm.cli.conversation import Conversation, Printer
from dlm.models.model import Model

ASK = "Sudoku: 3102200002100320"
OPTIONS: dict[str, Any] = {"gen_length": 20, "decoder": "threshold", "temperature": 1.0, "seed": 5}
ARGS = ["--gen-length=20", "--decoder=threshold", "--temperature=1", "--seed=5"]


def run(*args: str, stdin: str) -> Any:
    return CliRunner().invoke(app, ["chat", *args], input=stdin, prog_name="dlm")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


@pytest.fixture
def conversation(tiny: Model) -> Conversation:
    return Conversation(tiny, {"decoder": "low_confidence", "gen_length": 20, "seed": 0})


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_each_turn_sees_those_before_and_has_a_seed_of_its_own(
    system: str | None, tiny: Model
) -> None:
    more = [] if system is None else ["--system", system]
    stdin = f"{ASK}\n\n  {ASK}\n/clear\n{ASK}\n/exit\nnever asked\n"
    result = run(*ARGS, *more, "--cache=dual", "--json", stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    head = [] if system is None else [said("system", system)]
    chat = [said("user", ASK)]
    prompts = [chat, [*chat, said("assistant", rows[0]["text"]), *chat], chat]
    assert len(rows) == len(prompts)
    for turn, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        asked = {**OPTIONS, "cache": "dual", "seed": 5 + turn}
        out = dlm.generate(tiny, [*head, *prompt], **asked)
        assert out.texts is not None
        assert [row["tokens"]] == out.tokens
        assert (row["prompt"], row["text"], row["seed"]) == (ASK, out.texts[0], 5 + turn)
        assert row["forwards"] == out.forwards[0]


def test_answers_from_a_pipe_are_plain_text(tiny: Model) -> None:
    result = run("--gen-length=20", stdin=f"{ASK}\n/clear\n{ASK}\n")
    out = dlm.generate(tiny, [said("user", ASK)], gen_length=20)
    assert out.texts is not None
    assert result.stdout == f"{out.texts[0]}\n" * 2
    assert result.stderr.count(f"{out.forwards[0]} forwards, 1.00 tokens per forward") == 2


def test_a_conversation_that_does_not_fit_is_refused_and_goes_on(tiny: Model) -> None:
    """Nothing is dropped: the question is, aloud, and a pipe ends in an error."""
    long = "1" * 500
    result = run("--gen-length=20", stdin=f"{ASK}\n{long}\n/claer\n/clear\n{ASK}\n")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 2
    told = "error: the conversation and an answer of 20 tokens must fit the model's 512 positions"
    assert told in result.stderr
    assert "/clear begins anew, and a smaller --gen-length leaves more room" in result.stderr
    assert "unknown command '/claer'. Did you mean '/clear'?" in result.stderr


def test_a_refused_question_leaves_the_conversation_as_it_was(conversation: Conversation) -> None:
    assert conversation.ask(ASK, show=False) is not None
    before = list(conversation.messages)
    with pytest.raises(ValueError, match="must fit the model's 512 positions, got"):
        conversation.ask("1" * 500, show=False)
    assert (conversation.messages, conversation.turn) == (before, 1)
    assert [message["role"] for message in before] == ["user", "assistant"]


def interrupted_after(forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ctrl-C come while so many tokens have become final."""
    real = Printer.put

    def put(printer: Printer, value: torch.Tensor) -> None:
        real(printer, value)
        if len(printer.final) == forwards:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Printer, "put", put)


def test_an_answer_is_stopped(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation.options |= {"decoder": "left_to_right"}
    interrupted_after(3, monkeypatch)
    before = signal.getsignal(signal.SIGINT)
    whole = dlm.generate(conversation.model, [said("user", ASK)], **conversation.options).texts
    assert whole is not None
    assert conversation.ask(ASK, show=False) is None
    kept = conversation.messages[-1]
    assert kept["role"] == "assistant"
    assert 0 < len(kept["content"]) < len(whole[0])
    assert whole[0].startswith(kept["content"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_question_stopped_before_anything_was_final_is_taken_back(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Printer, "put_draft", lambda printer, value: signal.raise_signal(signal.SIGINT)
    )
    conversation.options |= {"decoder": "saber"}  # whose tokens are final at the end alone
    assert conversation.ask(ASK, show=False) is None
    assert conversation.messages == []


def test_stopping_ends_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(3, monkeypatch)
    result = run("--gen-length=20", "--decoder=left_to_right", stdin=f"{ASK}\n{ASK}\n")
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted\n")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("shown", [True, False])
def test_the_prompt_is_left(
    shown: bool, end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: Iterator[str] = iter(["  a ", "", "b"])

    def read(prompt: str) -> str:
        assert prompt == ("> " if shown else "")
        for line in typed:
            return line
        raise end

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: shown)
    assert list(command.lines(live=True)) == ["a", "b"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_not_final_is_drawn_dim(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    result = conversation.ask(ASK, show=True)
    assert result is not None
    text = screen.getvalue()
    assert "\x1b[2m" in text
    assert "_" in text  # a mask in front of what is drafted
    monkeypatch.setenv("TERM", "dumb")
    screen.truncate(0)
    conversation.clear()
    assert conversation.ask(ASK, show=True) is not None
    assert "\x1b" not in screen.getvalue()


def test_what_cannot_be_talked_to_is_said(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dlm.load(folder)
    assert loaded.tokenizer is not None
    loaded.tokenizer.chat_template = None
    monkeypatch.setattr(command, "load_model", lambda *given, **facts: loaded)
    for args, message in (
        (["--model", folder], "dlm chat needs a chat template"),
        (["--decoder=treshold"], "Did you mean 'threshold'?"),
        (["--system=a\udcff"], "--system must be text that UTF-8 can hold"),
    ):
        result = run(*args, stdin="x\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in run(stdin="x\n").stderr


@pytest.mark.slow
def test_a_terminal_is_asked_and_answered() -> None:
    host, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dlm", "chat", "--gen-length=20", "--decoder=threshold"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(terminal)
    os.write(host, f"{ASK}\n/exit\n".encode())
    out, errors = process.communicate(timeout=120)
    os.close(host)
    assert process.returncode == 0
    assert out == "3142243142131324\n"
    assert "/clear begins anew; /exit or Ctrl-D ends" in errors


def test_a_turn_computes_what_is_new(tiny: Model) -> None:
    """Where attention is in blocks; earlier turns are taken over as they were computed."""
    model = replace(tiny, spec=replace(tiny.spec, block_size=4))
    options = {**OPTIONS, "gen_length": 40, "cache": "prefix", "block_length": 4}
    assert Conversation(model, {**options, "cache": "none"}).prompt_cache is None
    talk = Conversation(model, options)
    first, second = talk.ask(ASK, show=False), talk.ask(ASK, show=False)
    assert first is not None
    assert second is not None
    prompt = [said("user", ASK), said("assistant", first.text), said("user", ASK)]
    alone = dlm.generate(model, prompt, **{**options, "seed": 6})
    assert second.tokens == alone.tokens[0]
    assert second.query_tokens <= alone.query_tokens[0] - 32
