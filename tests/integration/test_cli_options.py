"""Options that `dlm generate` and `dlm serve` share: how to decode, and with what model."""

import json
from contextlib import nullcontext
from typing import Any

import pytest
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli import serve as serving
from dlm.models.model import Model

PROMPT = "Sudoku: 3102200002100320"
SHORT = ["--gen-length=6", "--no-stop-at-eos"]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args), prog_name="dlm")


def generated(*args: str) -> Any:
    result = run("generate", PROMPT, *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `dlm serve` would answer with, instead of answering."""
    found: dict[str, Any] = {}

    def load(name: str | None, device: str | None, dtype: str, **facts: Any) -> None:
        found["facts"] = facts

    def serve(model: Any, listener: Any, name: str, defaults: dict[str, Any], *rest: Any) -> None:
        found["defaults"] = defaults

    monkeypatch.setattr(serving, "load_model", load)
    monkeypatch.setattr(serving, "listening", lambda host, port: nullcontext())
    monkeypatch.setattr(serving, "run", serve)
    return found


def test_tokens_are_suppressed(folder: str, model: Model) -> None:
    options: dict[str, Any] = {"gen_length": 6, "stop_at_eos": False}
    (plain,) = dlm.generate(model, PROMPT, **options).tokens
    first, *others = dict.fromkeys(plain)
    never = generated("--model", folder, *SHORT, *(f"--suppress-tokens={id}" for id in plain))
    assert not {first, *others} & set(never["tokens"])
    again = dlm.generate(model, PROMPT, suppress_tokens=plain, **options)
    assert [never["tokens"]] == again.tokens
    begun = generated("--model", folder, *SHORT, f"--begin-suppress-tokens={plain[0]}")
    again = dlm.generate(model, PROMPT, begin_suppress_tokens=[plain[0]], **options)
    assert [begun["tokens"]] == again.tokens != [plain]


def test_logits_are_biased(folder: str, model: Model) -> None:
    found = generated("--model", folder, *SHORT, "--logit-bias=9=1e3", "--logit-bias=10=0.5")
    assert found["tokens"] == [9] * 6
    assert "each token id must be an int >= 0, got 'x'" in refused(
        "generate", "a", "--logit-bias=x=1"
    )
    assert "--logit-bias must be key=value, got '5'" in refused("generate", "a", "--logit-bias=5")
    told = refused("generate", "a", "--logit-bias=5=much")
    assert "logit_bias[5] must be a finite number in [-1e+06, 1e+06], got 'much'" in told


def test_stop_tokens_are_committed_last(
    folder: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"gen_length": 6, "temperature": 5.0, "cache": "dual"}
    seen: list[dict[str, Any]] = []
    real = dlm.generate_each

    def spy(*given: Any, **asked: Any) -> Any:
        seen.append(asked)
        return real(*given, **asked)

    monkeypatch.setattr("dlm.generation.generate_each", spy)
    args = ["--gen-length=6", "--temperature=5", "--cache=dual", "--confidence-eos-eot-inf"]
    found = generated("--model", folder, *args, "--pad-after-eos")
    on: dict[str, Any] = {"confidence_eos_eot_inf": True, "pad_after_eos": True}
    assert seen[0] == seen[0] | on
    alone = dlm.generate(model, PROMPT, **on, **options)
    assert [found["tokens"]] == alone.tokens


def test_room_for_prompts_is_checked_first() -> None:
    assert "--prompt-cache must be a finite number >= 0, got -1.0" in refused(
        "serve", "--prompt-cache=-1"
    )


def test_a_server_is_started_with_them(served: dict[str, Any]) -> None:
    assert run("serve").exit_code == 0
    usual = served["defaults"]
    assert usual["stop_at_eos"] is True
    assert usual["confidence_eos_eot_inf"] is False
    assert not {"suppress_tokens", "begin_suppress_tokens", "logit_bias"} & usual.keys()
    args = ["--no-stop-at-eos", "--confidence-eos-eot-inf", "--suppress-tokens=3"]
    args += ["--suppress-tokens=7", "--begin-suppress-tokens=9", "--logit-bias=4=-2"]
    assert run("serve", *args).exit_code == 0
    changed = {k: v for k, v in served["defaults"].items() if usual.get(k) != v}
    assert changed == {
        "stop_at_eos": False,
        "confidence_eos_eot_inf": True,
        "suppress_tokens": [3, 7],
        "begin_suppress_tokens": [9],
        "logit_bias": {"4": -2},
    }


@pytest.mark.parametrize("command", [["generate", "x"], ["serve"]], ids=" ".join)
def test_what_they_may_be_is_said(command: list[str]) -> None:
    told = refused(*command, "--suppress-tokens=x")
    assert "'--suppress-tokens': must be an int, got 'x'" in told
    told = refused(*command, "--confidence-eos-eot-inf", "--decoder=random")
    assert "'random' reads none of them: use suppress_tokens" in told


def test_ids_outside_the_vocabulary_are_refused(folder: str) -> None:
    told = refused("generate", "x", "--model", folder, "--suppress-tokens=999999")
    assert "suppress_tokens must be an int <= " in told


def test_an_answer_ends_at_a_text() -> None:
    whole = generated(*SHORT)
    stop = whole["text"][2]
    found = generated(*SHORT, "--stop", stop, "--stop", "never")
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert found["forwards"] <= whole["forwards"]
    message = refused("generate", "a [MASK]", "--infill", "--stop", "x")
    assert "stop is for generate: what follows a blank is given" in message
