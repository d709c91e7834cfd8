"""The command line, in process; what it must not import, in a process of its own."""

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging
from typer.testing import CliRunner

import dlm
from dlm.cli import app, generate, options, train
from dlm.cli.inputs import parse_value
from dlm.cli.job import Job
from dlm.models.loading import BUILT_IN, silence
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.training.loop import Recipe
from dlm.training.run import Shape

TOKENIZER = Path(dlm.__file__).parent / "assets" / BUILT_IN
PUZZLE = "Sudoku: 3102200002100320"
SMALL = ["--layers=1", "--width=32", "--heads=2", "--mlp-width=64", "--tokens-per-batch=256"]
KEYS = [
    "prompt",
    "text",
    "tokens",
    "forwards",
    "query_tokens",
    "tokens_per_forward",
    "seconds",
    "seed",
    "decoder",
]


def run(*args: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, list(args), input=stdin, prog_name="dlm")


def run_well(*args: str, stdin: str = "") -> Any:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Starting


@pytest.mark.parametrize(
    "args",
    [["--help"], ["generate", "--help"], ["train", "--help"], ["--version"], ["models"]],
    ids=" ".join,
)
def test_light_commands_do_not_import_torch(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from dlm.cli import app\n"
        "try:\n"
        f"    app({args!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "dlm", "--version"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert out.stdout == f"dlm {dlm.__version__}\n"


def test_help_lists_every_command() -> None:
    text = run_well("--help").stdout
    assert all(command in text for command in ("generate", "train", "decoders", "models"))


def test_defaults_are_the_library_s() -> None:
    def defaults(command: Any) -> dict[str, Any]:
        return {n: p.default for n, p in inspect.signature(command).parameters.items()}

    decoding = defaults(generate.generate)
    own = {"gen_length", "stop_at_eos"}  # the built-in model and --infill have their own
    for field in fields(Settings):
        if field.name in decoding and field.name not in own:
            assert decoding[field.name] == (None if field.default == () else field.default)
    assert Settings().gen_length == options.GEN_LENGTH
    training = defaults(train.train)
    for field in fields(Recipe):
        if field.name in training:
            assert training[field.name] == field.default, field.name
    shown = inspect.signature(train.train).parameters
    for field in fields(Shape):
        if field.name in shown:
            option = shown[field.name].annotation.__metadata__[0]
            assert option.show_default == str(field.default), field.name


# Generating


def test_generate_prints_the_text_and_what_it_took(folder: str, model: Model) -> None:
    result = run_well("generate", PUZZLE, "--model", folder, "--gen-length=12", "--device=cpu")
    out = dlm.generate(model, PUZZLE, gen_length=12)
    assert out.texts is not None
    assert result.stdout == out.texts[0] + "\n"
    assert result.stderr.startswith(f"{out.forwards[0]} forwards, ")
    assert "tokens per forward" in result.stderr


def test_json_is_the_library_s_result_whatever_the_batch(folder: str, model: Model) -> None:
    prompts = [PUZZLE, "Countdown: 1,2,3,6", "x"]
    options = ["--gen-length=9", "--temperature=1", "--seed=7", "--no-stop-at-eos", "--json"]
    out = dlm.generate(model, prompts, gen_length=9, temperature=1.0, seed=7, stop_at_eos=False)
    for size in ("1", "2", "16"):
        args = ["generate", *prompts, "--model", folder, "--batch-size", size, *options]
        rows = records(run_well(*args).stdout)
        assert [list(row) for row in rows] == [KEYS] * 3
        assert [row["prompt"] for row in rows] == prompts
        assert [row["tokens"] for row in rows] == out.tokens
        assert [row["text"] for row in rows] == out.texts
        assert [row["forwards"] for row in rows] == out.forwards
        assert [row["query_tokens"] for row in rows] == out.query_tokens
        assert [row["tokens_per_forward"] for row in rows] == [9 / n for n in out.forwards]
        assert {(row["seed"], row["decoder"]) for row in rows} == {(7, "low_confidence")}


def test_json_writes_nothing_else(folder: str) -> None:
    args = ["--model", folder, "--gen-length=3", "--device=cpu", "--json"]
    result = run_well("generate", "x", *args)
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def test_every_option_reaches_the_library(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    real = dlm.generate_each

    def spy(model: Model, prompts: Any, **options: Any) -> Any:
        seen.update(options)
        return real(model, prompts, **options)

    monkeypatch.setattr("dlm.generation.generate_each", spy)
    wanted = {
        "decoder": "threshold", "decoder_options": {"threshold": 0.25}, "gen_length": 5,
        "block_length": 3, "steps": 4, "position_temperature": 0.125, "stop_at_eos": False,
        "cache": "dual", "refresh_every": 3, "refresh_around": 2, "suffix_window": 6,
        "refresh_prompt_every": 7, "refresh_decoded_every": 5,
        "temperature": 0.5, "top_k": 9, "top_p": 0.75, "cfg_scale": 1.5, "seed": 11,
        "confidence_eos_eot_inf": False, "pad_after_eos": False,
    }  # fmt: skip
    flags = ("decoder_options", "stop_at_eos", "confidence_eos_eot_inf", "pad_after_eos")
    args = [f"--{k.replace('_', '-')}={v}" for k, v in wanted.items() if k not in flags]
    args += ["--option", "threshold=0.25", "--no-stop-at-eos", "--device=cpu", "--dtype=float32"]
    run_well("generate", "x", "--model", folder, *args)
    assert seen == wanted | {"batch_size": 16}


def test_chat_is_one_user_message(folder: str, model: Model, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": PUZZLE}]
    out = dlm.generate(model, chat, gen_length=6)
    args = ["--model", folder, "--gen-length=6", "--json"]
    assert (
        records(run_well("generate", PUZZLE, "--chat", *args).stdout)[0]["tokens"] == out.tokens[0]
    )
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": chat}) + "\n")
    row = records(run_well("generate", "--file", str(file), *args).stdout)[0]
    assert row["tokens"] == out.tokens[0]
    assert row["prompt"] == chat


@pytest.mark.parametrize(
    ("flags", "chat", "length"),
    [([], True, 64), (["--no-chat"], False, 64), (["--gen-length=5"], True, 5)],
    ids=str,
)
def test_the_built_in_model_chats_by_default(
    flags: list[str], chat: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(generate, "load_model", lambda *args, **facts: args)
    monkeypatch.setattr(Job, "run", lambda job, *args, **options: jobs.append(job))
    run_well("generate", "x", *flags)
    assert jobs[0].chat is chat
    assert jobs[0].options["gen_length"] == length


@pytest.mark.parametrize("how", ["stdin", "file"])
@pytest.mark.parametrize(
    "text",
    ["a b\n\n  c\r\n", '{"prompt": "a b"}\n\n{"prompt": "  c", "id": 1}\n'],
    ids=["lines", "jsonl"],
)
def test_prompts_come_from_a_pipe_or_a_file(
    how: str, text: str, folder: str, tmp_path: Path
) -> None:
    args = ["generate", "--model", folder, "--gen-length=2", "--json"]
    if how == "file":
        file = tmp_path / "prompts"
        file.write_bytes(text.encode())
        rows = records(run_well(*args, "--file", str(file)).stdout)
    else:
        rows = records(run_well(*args, stdin=text).stdout)
    assert [row["prompt"] for row in rows] == ["a b", "  c"]


def test_infill_fills_the_blanks(folder: str, model: Model) -> None:
    text = "def f(x): return [MASK:3] + [MASK]"
    row = records(run_well("generate", "--infill", text, "--model", folder, "--json").stdout)[0]
    out = dlm.infill(model, text)
    assert row["tokens"] == out.tokens[0]
    assert row["tokens_per_forward"] == 4 / out.forwards[0]


def test_infill_lets_blanks_grow_where_the_network_asks_for_it(
    folder: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model asks for a blank by a token of its own here."""
    asks = replace(model, spec=replace(model.spec, expand_id=40))
    monkeypatch.setattr("dlm.cli.generate.load_model", lambda *given, **facts: asks)
    text, bias = "def f(x): return [MASK:2]", {40: 9.0, model.spec.eos_id: 6.0}
    given = [f"--logit-bias={token}={value}" for token, value in bias.items()]
    given += ["--max-gen-length=6", "--expand-budget=3", f"--model={folder}", "--json"]
    told = run_well("generate", "--infill", text, *given).stdout
    out = dlm.infill(asks, text, max_gen_length=6, expand_budget=3, logit_bias=bias)
    assert records(told)[0]["tokens"] == out.tokens[0]
    assert records(told)[0]["forwards"] == out.forwards[0]
    assert out.forwards != dlm.infill(asks, text, max_gen_length=6, logit_bias=bias).forwards


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ('"7"', "7"),
        ("model", "model"),
        ("a=b.json", "a=b.json"),
        ("", ""),
    ],
)
def test_option_values(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


# Errors

BAD: list[tuple[str, Sequence[str]]] = [
    ("no prompt: give one", ["generate"]),
    ("no model folder at '/nope'", ["generate", "x", "--model=/nope"]),
    ("Did you mean 'threshold'?", ["generate", "x", "--decoder=thresold"]),
    ("--option must be key=value, got 'n'", ["generate", "x", "--option=n"]),
    ("--option n was given twice", ["generate", "x", "--option=n=1", "--option=n=2"]),
    (
        "unknown option of threshold 'tau'",
        ["generate", "x", "--decoder=threshold", "--option=tau=1"],
    ),
    ("gen_length must be an int >= 1, got 0", ["generate", "x", "--gen-length=0"]),
    ("'--gen-length': must be an int, got '1.5'", ["generate", "x", "--gen-length=1.5"]),
    ("'--temperature': must be a number, got 'hot'", ["generate", "x", "--temperature=hot"]),
    (
        "temperature must be a finite number >= 0, got -1",
        ["generate", "x", "--temperature=-1"],
    ),
    ("'--batch-size': must be an int >= 1, got '0'", ["generate", "x", "--batch-size=0"]),
    ("unknown dtype 'int3'", ["generate", "x", "--dtype=int3"]),
    ("no such file or directory: '/nope'", ["generate", "--file=/nope"]),
    ("give prompts or --file, not both", ["generate", "x", "--file=y"]),
    ("--watch draws one prompt, got 2", ["generate", "x", "y", "--watch"]),
    ("--watch and --json", ["generate", "x", "--watch", "--json"]),
    ("leave --infill out", ["generate", "[MASK]", "--watch", "--infill"]),
    ("leave --chat out", ["generate", "[MASK]", "--chat", "--infill"]),
    ("give --infill, too", ["generate", "a", "--max-gen-length=4"]),
    ("expand_budget goes with max_gen", ["generate", "[MASK]", "--infill", "--expand-budget=4"]),
    ("leave --gen-length out", ["generate", "[MASK]", "--infill", "--gen-length=4"]),
    ("no such option: --gen-len", ["generate", "x", "--gen-len=4"]),
    ("Did you mean 'generate'?", ["genrate"]),
    ("no such option: --foo", ["--foo"]),
    ("missing option '--out'", ["train"]),
    ("unknown task 'sudku'", ["train", "--out=o", "--task=sudku=1"]),
    (
        "--task sudoku must have a finite share > 0, got '0'",
        ["train", "--out=o", "--task=sudoku=0"],
    ),
    ("--task file trains on --data", ["train", "--out=o", "--task=file=1"]),
    ("no such file or directory: '/nope'", ["train", "--out=o", "--data=/nope"]),
    ("no tokenizer.json in --tokenizer '/nope'", ["train", "--out=o", "--tokenizer=/nope"]),
    ("steps must be an int >= 1, got 0", ["train", "--out=o", "--steps=0"]),
    ("holds no run to resume", ["train", "--out=/nope", "--resume"]),
    ("layers must be an int >= 1, got 0", ["train", "--out=o", "--layers=0"]),
    ("--init brings its own shape", ["train", "--out=o", "--init=/nope", "--layers=2"]),
    ("no model folder at '/nope'", ["train", "--out=o", "--init=/nope"]),
]


@pytest.mark.parametrize(("message", "args"), BAD, ids=[" ".join(args) for _, args in BAD])
def test_bad_input_is_one_line(message: str, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\nb\n', ":2 must be a JSON object"),
        ('{"text": "a"}\n', ':1 must be an object with "prompt" or "messages"'),
        ('{"prompt": 3}\n', '"prompt" must be a string, got 3'),
        ('{"messages": [{"role": "user"}]}\n', '"messages" must be a list of'),
        ("\n\n", "no prompt in"),
    ],
)
def test_bad_prompt_files_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(text)
    result = run("generate", "--file", str(file))
    assert result.exit_code == 2
    assert message in result.stderr


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **facts: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(generate, "load_model", fail)
    assert isinstance(run("generate", "x").exception, RuntimeError)


def test_interrupting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **facts: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupt)
    result = run("generate", "x")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


# Loading


def test_silence_gives_the_bars_back() -> None:
    shown = logging.is_progress_bar_enabled()
    with silence():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == shown


def test_facts_that_files_do_not_tell_are_given() -> None:
    result = run("generate", "x", "--family", "llda")
    assert result.exit_code == 2
    assert "llada" in result.stderr
    result = run("generate", "x", "--block-size", "0")
    assert result.exit_code == 2
    assert "--block-size" in result.stderr
    behind = ("--block-size", "8", "--decoder", "d2f", "--cache", "dual", "--gen-length", "12")
    assert run("generate", "x", *behind).exit_code == 0
