"""`dlm frequencies`: what it writes, shows, goes on from and refuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dlm
from dlm import frequencies
from dlm.cli import app
from dlm.cli.train import load_tokenizer
from dlm.decoders.frequencies import read_frequencies
from dlm.frequencies import load
from dlm.models.loading import BUILT_IN
from dlm.models.tokenizers import read_tokenizer

TOKENIZER: Any = read_tokenizer(str(Path(dlm.__file__).parent / "assets" / BUILT_IN))
LINES = [f"Compute: {n}*{n + 1}, {n}+7 gives {n * (n + 1)}, {n + 7}" for n in range(30)]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["frequencies", *args], prog_name="dlm")


def run_well(*args: str) -> Any:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Twenty documents as lines, the other ten as objects."""
    plain, objects = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("\n".join(LINES[:20]))
    objects.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES[20:]))
    return [str(plain), str(objects)]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from dlm.cli import app\n"
        "try:\n"
        "    app(['frequencies', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_json_of_the_built_in_tokenizer(corpus: list[str], tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    result = run_well(*corpus, "--out", str(out), "--json")
    assert result.stderr == ""
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    rows = [TOKENIZER(line, add_special_tokens=False)["input_ids"] for line in LINES]
    tokens = [token for ids in rows for token in ids]
    assert row["out"] == str(out)
    assert row["documents"] == 30
    assert row["tokens"] == len(tokens)
    assert row["distinct_tokens"] == len(set(tokens))
    assert row["vocab_size"] == len(TOKENIZER)
    best = sorted(set(tokens), key=lambda token: (-tokens.count(token), token))[:10]
    assert [entry["id"] for entry in row["most_frequent"]] == best
    for entry in row["most_frequent"]:
        assert entry["count"] == tokens.count(entry["id"])
        assert entry["share"] == entry["count"] / len(tokens)
        assert entry["text"] == TOKENIZER.decode([entry["id"]])
    f = read_frequencies(out, len(TOKENIZER))
    assert f[best[0]].item() == pytest.approx(row["most_frequent"][0]["share"])
    assert json.loads(out.read_text())["dlm"]["tokenizer"]["name"] == "built-in"


def test_people_get_a_table(corpus: list[str], tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    result = run_well(*corpus, "--out", str(out))
    first, head, _, *rows = [line.rstrip() for line in result.stdout.splitlines() if line.strip()]
    total = load(out)
    assert first.startswith(f"30 documents, {total.num_token:,} tokens, {len(total.counts)} ")
    assert head.split() == ["token", "id", "count", "share"]
    assert len(rows) == 10
    token, count = max(total.counts.items(), key=lambda item: (item[1], -item[0]))
    share = f"{100 * count / total.num_token:.2f}%"
    assert rows[0].split()[-3:] == [str(token), f"{count:,}", share]
    assert "--option frequencies=" in result.stderr


def test_model_limit_and_field(corpus: list[str], folder: str, tmp_path: Path) -> None:
    out, bodies = tmp_path / "f.json", tmp_path / "c.jsonl"
    bodies.write_text('{"body": "x", "text": 3}\n{"body": "y"}\n')
    args = ["--model", folder, "--json", "--out", str(out)]
    row = json.loads(run_well(str(bodies), "--field=body", "--limit=1", *args).stdout)
    assert (row["documents"], row["tokens"]) == (1, 1)
    row = json.loads(run_well(str(bodies), "--field=body", *args).stdout)
    assert (row["documents"], row["tokens"]) == (2, 2)
    assert run(*corpus, *args).exit_code == 2


def test_ctrl_c_leaves_a_file_that_goes_on(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    run_well(*corpus, "--out", str(whole))
    monkeypatch.setattr(frequencies, "BATCH_TEXTS", 4)
    encode = frequencies.encode
    calls = []

    def press(tokenizer: Any, texts: list[str]) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(tokenizer, texts)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(frequencies, "encode", press)
    result = run(*corpus, "--out", str(parts))
    assert signal.getsignal(signal.SIGINT) is before
    assert (result.exit_code, result.stdout) == (130, "")
    assert "interrupted: the same command goes on" in result.stderr
    assert load(parts).documents == 12
    monkeypatch.setattr(frequencies, "encode", encode)
    run_well(*corpus, "--out", str(parts))
    assert parts.read_bytes() == whole.read_bytes()


def test_the_bar_leaves_stdout_alone(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    result = run_well(*corpus, "--out", str(tmp_path / "f.json"), "--json")
    assert json.loads(result.stdout)["documents"] == 30
    assert "30 documents" in result.stderr


def test_a_model_may_have_a_bare_name(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    tokenizer = load_tokenizer(None)

    def read(source: str) -> Any:
        seen.append(source)
        return tokenizer

    monkeypatch.setattr("dlm.models.tokenizers.read_tokenizer", read)
    run_well(*corpus, "--out", str(tmp_path / "f.json"), "--model=bert-base-uncased")
    assert seen == ["bert-base-uncased"]


def test_bad_input_is_one_line(corpus: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "f.json")]
    listed, blank, bad, empty = (tmp_path / n for n in ("l.json", "b.txt", "x.jsonl", "empty"))
    listed.write_text("[0.5, 0.5]")
    blank.write_text("\n \n")
    bad.write_text('{"text": "a"}\n{}\n')
    empty.mkdir()
    run_well(*corpus, *out)
    for message, args in (
        ("missing argument 'CORPUS'", out),
        ("missing option '--out'", corpus),
        ("no such file or directory: '/nope'", ["/nope", *out]),
        ("corpus must be regular files, got", [str(tmp_path), *out]),
        ("no model folder at '/nope'", [*corpus, *out, "--model=/nope"]),
        ("--model must be a folder or a Hugging Face id, got ''", [*corpus, *out, "--model="]),
        ("--model must have a tokenizer, got", [*corpus, *out, "--model", str(empty)]),
        ("'--limit': must be an int >= 1, got '0'", [*corpus, *out, "--limit=0"]),
        ("limit must be >= 30", [*corpus, *out, "--limit=3"]),
        ("was made from another corpus", [corpus[0], *out]),
        ("must hold counts to go on from, got a list", [*corpus, "--out", str(listed)]),
        ("at least one token, got 0 texts", [str(blank), "--out", str(tmp_path / "g.json")]),
        ("x.jsonl:2: must have 'text', got", [str(bad), "--out", str(tmp_path / "g.json")]),
    ):
        result = run(*args)
        assert result.exit_code == 2, message
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert not (tmp_path / "g.json").exists()


def test_what_cannot_be_written_is_said_before_anything_is_counted(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.frequencies.count_tokens", None)
    for out in (tmp_path / "none" / "out.json", tmp_path):
        result = run(*corpus, "--out", str(out))
        assert result.exit_code == 2
        assert f"--out must be a file that can be written, got {str(out)!r}" in result.output
    assert run("no/such/corpus.txt", "--out", str(tmp_path / "out.json")).exit_code == 2
    assert not (tmp_path / "out.json").exists()
