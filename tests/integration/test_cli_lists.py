"""`dlm decoders` and `dlm models`: all of them, and those that are asked for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dlm.cli import app, lists
from dlm.cli.lists import describe_decoder, in_full
from dlm.decoders import DECODERS
from dlm.models.catalog import CHECKPOINTS
from dlm.models.loading import load


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args), prog_name="dlm")


def run_well(*args: str) -> Any:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_decoders_lists_all() -> None:
    rows = records(run_well("decoders", "--json").stdout)
    assert [row["name"] for row in rows] == list(DECODERS)
    threshold = rows[[row["name"] for row in rows].index("threshold")]
    assert threshold["options"] == {"threshold": 0.9}
    assert threshold["summary"].startswith("Commit every position")
    text = run_well("decoders").stdout
    assert all(name in text for name in DECODERS)
    assert "threshold=0.9" in text
    assert threshold["published"][0]["tokens_per_forward"] == 3.25
    assert threshold["published"][0]["decoder_options"] == {"threshold": 0.9}
    assert threshold["caches"] == ["none", "prefix", "dual"]
    assert [row["caches"] for row in rows if row["name"] == "saber"] == [["none"]]


def test_a_narrow_terminal_gets_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "WIDE", lists.NARROW - 1)
    lines = run_well("decoders").stdout.splitlines()
    assert "options" not in lines[0]
    assert any("options: threshold=0.9   paper: arXiv:2505.22618" in line for line in lines)


def test_models_lists_the_catalog_and_the_built_in_model(folder: str) -> None:
    rows = records(run_well("models", "--json").stdout)
    assert [row["name"] for row in rows] == ["built-in", *(c.name for c in CHECKPOINTS)]
    text = run_well("models").stdout
    shown = ("GSAI-ML/LLaDA-8B-Instruct", "8.0 B", "a2d-llama")  # the last has no checkpoint there
    assert all(each in text for each in shown)
    assert lists.count_parameters(Path(folder) / "model.safetensors") == sum(
        p.numel() for p in load(folder).network.parameters()
    )


@pytest.mark.parametrize("width", [40, 80, 100, 250])
def test_settings_are_lines_of_their_own(width: int) -> None:
    """However wide the screen: one begins each line, what it takes more lines for is indented."""
    for name, decoder in DECODERS.items():
        row = describe_decoder(name, decoder)
        lines = "\n".join(in_full(row, row["summary"], width)).splitlines()
        words = max(len(word) for line in lines for word in line.split())
        assert max(map(len, lines)) <= max(width, 8 + words)
        expected = [lists.setting_line(setting) for setting in row["published"]]
        assert lines_of("published settings", lines) == expected
        options = [f"{option}={value}" for option, value in row["options"].items()]
        assert lines_of("options", lines) == options


def lines_of(title: str, lines: Sequence[str]) -> list[str]:
    """What stands below a title, each thing on one line again."""
    if f"  {title}:" not in lines:
        return []
    found: list[str] = []
    for line in lines[lines.index(f"  {title}:") + 1 :]:
        if line.startswith(" " * 8):
            found[-1] += " " + line.strip()
        elif line.startswith(" " * 4):
            found.append(line.strip())
        else:
            break
    return found


def test_verbose_tells_all_about_each() -> None:
    text = run_well("decoders", "--verbose").stdout
    blocks = text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == list(DECODERS)
    assert (
        "    gsm8k, llada-semi-ar: gen_length=256, block_length=8 (1 tokens per forward)\n"
        in blocks[0]
    )
    assert "  caches: none, prefix, dual\n" in blocks[0]
    assert "  needs: confidence, position_noise\n  changes committed tokens: no\n" in blocks[0]
    assert blocks[0].endswith("  paper: arXiv:2502.09992")


def test_one_decoder_is_told_about_in_full() -> None:
    text = run_well("decoders", "saber").stdout
    assert text.startswith("saber\n  Commit c > mean confidence of past commits")
    assert "\n      mu: a forward that commits mu times as many remasks one more.\n" in text
    assert "\n    preset=reference\n" in text
    setting = "humaneval, saber: n=2, mu=8, gen_length=256, block_length=None"
    assert f"\n    {setting} (3.6 tokens per forward)\n" in text
    assert text.endswith("\n  paper: arXiv:2510.18165\n")
    assert "wino" not in text
    (row,) = records(run_well("decoders", "saber", "--json").stdout)
    assert row == describe_decoder("saber", DECODERS["saber"])


def test_models_are_looked_for_by_family_and_name() -> None:
    rows = records(run_well("models", "SDAR", "--json").stdout)
    wanted = [c.name for c in CHECKPOINTS if "sdar" in c.family or "SDAR" in c.name]
    assert [row["name"] for row in rows] == wanted
    assert "Gen-Verse/TraDo-4B-Instruct" in wanted  # by its family alone
    text = run_well("models", "TraDo-4B").stdout
    assert "Gen-Verse/TraDo-4B-Instruct" in text
    assert "TraDo-8B" not in text
    assert "Families" not in text
    assert "--family a2d-llama takes one" in run_well("models", "a2d-llama").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["decoders", "thresold"], "unknown decoder 'thresold'. Did you mean 'threshold'? Known: "),
        (["models", "sdra"], "unknown model or family 'sdra'. Did you mean 'sdar'? Known: "),
    ],
)
@pytest.mark.parametrize("json", [[], ["--json"]], ids=["people", "machines"])
def test_what_is_misspelt_is_refused(args: list[str], message: str, json: list[str]) -> None:
    result = run(*args, *json)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
