"""`dlm generate`: what stands beside a prompt, in front of it, and around the process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dlm
from dlm.cli import app, generate
from dlm.cli.inputs import read_prompts
from dlm.cli.job import in_order
from dlm.models.model import Model

ASK = {"role": "user", "content": "Sudoku: 3102200002100320"}
SYSTEM = {"role": "system", "content": "Be brief."}
SHORT = ["--gen-length=6", "--no-stop-at-eos", "--json"]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["generate", *args], prog_name="dlm")


def rows_of(*args: str) -> list[dict[str, Any]]:
    result = run(*args, *SHORT)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(*args: str) -> str:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def written(folder: Path, *records: Any) -> str:
    file = folder / "x.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def test_the_id_of_a_record_is_told_again(folder: str, tmp_path: Path) -> None:
    ids = ["a/1", 7, None]
    file = written(tmp_path, {"prompt": "x"}, *({"id": each, "messages": [ASK]} for each in ids))
    rows = rows_of("--file", file, "--model", folder)
    assert "id" not in rows[0]
    assert [row["id"] for row in rows[1:]] == ids
    assert [row["prompt"] for row in rows] == ["x", *[[ASK]] * 3]
    assert read_prompts([], Path(file)) == ["x", *[[ASK]] * 3]


def test_what_else_a_record_has_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "x"}, {"prompt": "x", "seeds": 1})
    told = refused("--file", file)
    assert "unknown key in " in told
    assert "x.jsonl:2 'seeds'. Known: gen_length, id, messages, prompt" in told
    file = written(tmp_path, {"prompt": "x", "ids": 1})
    assert "x.jsonl:1 'ids'. Did you mean 'id'?" in refused("--file", file)


def test_a_system_message_goes_in_front(folder: str, model: Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"gen_length": 6, "stop_at_eos": False}
    out = dlm.generate(model, [SYSTEM, ASK], **options)
    assert out.query_tokens > dlm.generate(model, [ASK], **options).query_tokens
    args = ["--model", folder, "--system", SYSTEM["content"]]
    (row,) = rows_of(ASK["content"], "--chat", *args)
    assert ([row["tokens"]], [row["query_tokens"]]) == (out.tokens, out.query_tokens)
    assert row["prompt"] == ASK["content"]
    (row,) = rows_of("--file", written(tmp_path, {"messages": [ASK]}), *args)
    assert ([row["tokens"]], [row["query_tokens"]]) == (out.tokens, out.query_tokens)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x", "--model=m"], "--system goes in front of chat messages: give --chat as well"),
        (["x", "--no-chat"], "--system goes in front of chat messages: give --chat as well"),
        (["[MASK]", "--infill"], "--infill takes texts as they stand: leave --chat out, and --sys"),
        (["a\udcff"], "prompt 1 of the command line must be text"),
    ],
    ids=str,
)
def test_a_system_message_without_a_chat_is_refused(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "load_model", None)  # before a model is loaded
    assert message in refused(*args, "--system=s")


def test_two_system_messages_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"messages": [SYSTEM, ASK]})
    told = refused("--file", file, "--system=s")
    assert "--system goes in front of messages that have none of their own" in told
    assert "--system must be text that UTF-8 can hold" in refused("x", "--system=a\udcff")


def test_messages_that_a_template_refuses_are_one_line(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = dlm.load(folder)
    assert loaded.tokenizer is not None
    loaded.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    monkeypatch.setattr(generate, "load_model", lambda *given, **facts: loaded)
    told = refused("x", "--chat")
    assert told == "error: messages must fit the model's chat template: no system role\n"


@pytest.mark.parametrize("size", ["2", "1", ""])
def test_one_of_several_processes_is_refused(
    size: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    if size != "2":
        assert len(rows_of("x", "--model", folder)) == 1
        return
    told = refused("x", "--model", folder)
    assert "WORLD_SIZE=2 says that there are 2, each of which would decode and print all" in told


def test_results_come_in_the_order_of_the_prompts_and_no_later_than_they_can() -> None:
    asked: list[int] = []

    def numbered() -> Iterator[tuple[int, Any]]:
        for number in (2, 0, 3, 1):
            asked.append(number)
            yield number, f"result {number}"

    results: Iterator[Any] = in_order(numbered())
    assert next(results) == "result 0"
    assert asked == [2, 0]
    assert [*results] == ["result 1", "result 2", "result 3"]


def test_a_dash_is_what_is_piped_and_built_in_the_model_without_a_name() -> None:
    given = ["generate", "--file", "-", "--model", "built-in", *SHORT]
    piped = CliRunner().invoke(app, given, input="1+1\n")
    (told,) = map(json.loads, piped.stdout.splitlines())
    (row,) = rows_of("1+1")
    assert told | {"seconds": 0} == row | {"seconds": 0}


def test_the_content_of_a_message_may_be_parts(folder: str, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": text} for text in (ASK["content"][:8], ASK["content"][8:])]
    file = written(tmp_path, {"messages": [{**ASK, "content": parts}]}, {"messages": [ASK]})
    one, other = rows_of("--file", file, "--model", folder)
    assert one["tokens"] == other["tokens"]
    file = written(tmp_path, {"messages": [{**ASK, "content": [{"type": "image_url"}]}]})
    assert "parts of " in refused("--file", file)


def test_a_record_may_have_a_length_of_its_own(folder: str, model: Model, tmp_path: Path) -> None:
    records = [{"prompt": "1+1", "gen_length": 3}, {"prompt": "1+1"}, {"prompt": "2+2"}]
    rows = rows_of("--file", written(tmp_path, *records), "--model", folder)
    assert [len(row["tokens"]) for row in rows] == [3, 6, 6]
    alone = dlm.generate(model, "1+1", gen_length=3, stop_at_eos=False)
    assert rows[0]["tokens"] == alone.tokens[0]
    told = refused("--file", written(tmp_path, {"prompt": "a [MASK]", "gen_length": 3}), "--infill")
    assert 'leave "gen_length" out' in told
    told = refused("--file", written(tmp_path, {"prompt": "a", "gen_length": 0}))
    assert 'x.jsonl:1: "gen_length" must be an int >= 1, got 0' in told
