"""The scripts in `examples/` run, on checkpoints of a size that a test can have."""

import ast
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.models.loading import silence

EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILIES = Path(__file__).parent.parent / "golden" / "families"
TINY = Path(dlm.__file__).parent / "assets" / "tiny"
PROMPT = "Compute: 60/5, 14*7, 30+14, 50/5"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script and gives what it printed."""

    def main(name: str, *arguments: str) -> str:
        with silence():
            runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](arguments)
        return capsys.readouterr().out

    return main


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_short_and_say_what_they_show(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert text.isascii()


def test_quickstart(run: Callable[..., str]) -> None:
    printed = run("quickstart", "--prompt", PROMPT, "--length", "40")
    texts = dlm.generate(dlm.load(), [{"role": "user", "content": PROMPT}], gen_length=40).texts
    assert texts is not None
    assert f"low_confidence: {texts[0]}\n  40 forwards, 1.0 tokens each" in printed
    forwards = int(re.findall(r"(\d+) forwards", printed)[1])
    assert forwards < 40
    assert printed.count("after forward") == forwards


def test_chat(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [PROMPT, "Countdown: 56,26,1,30"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*questions, "", "not read"])))
    printed = run("chat_llada", str(TINY), "--length", "40", "--decoder", "low_confidence")
    model, chat = dlm.load(), list[dict[str, str]]()
    for question in questions:
        chat.append({"role": "user", "content": question})
        texts = dlm.generate(model, chat, gen_length=40).texts
        assert texts is not None
        chat.append({"role": "assistant", "content": texts[0]})
    assert printed == "".join(f"> {each['content']}\n" for each in chat[1::2]) + "> "


def test_eval_two_decoders(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("eval_two_decoders", "--limit", "4", "--output", str(tmp_path))
    assert "threshold against low_confidence, 4 problems" in printed
    ratio = re.search(r"([\d.]+) times the forwards", printed)
    assert ratio is not None
    assert float(ratio[1]) < 1
    assert {p.name for p in tmp_path.iterdir()} == {"low_confidence", "threshold"}


def test_custom_decoder(run: Callable[..., str]) -> None:
    printed = run("custom_decoder", "--width", "0", "1", "40")
    counts = [int(n) for n in re.findall(r"width \d+: (\d+) forwards", printed)]
    assert len(counts) == 3
    assert counts == sorted(counts), "the further apart, the fewer at a time"
    assert counts[0] < counts[1]
    apart = runpy.run_path(str(EXAMPLES / "custom_decoder.py"))["Apart"](width=40)
    chat = [{"role": "user", "content": PROMPT}]
    assert dlm.generate(dlm.load(), chat, decoder=apart, gen_length=40, steps=5).forwards == [5]


def test_looking_ahead(run: Callable[..., str]) -> None:
    printed = run("looking_ahead", "--ways", "2", "3")
    counts = [int(n) for n in re.findall(r"\d+ ways: (\d+) forwards", printed)]
    assert len(counts) == 2
    assert all(20 < count < 30 for count in counts), "of 40 tokens up to two a forward"


def test_dream_infilling(run: Callable[..., str]) -> None:
    model = dlm.load(FAMILIES / "dream")
    row = [3, model.spec.mask_id, 5, model.spec.mask_id, model.spec.mask_id, 6]
    printed = run("dream_infilling", str(FAMILIES / "dream"), "--ids", *map(str, row))
    lines = printed.splitlines()
    assert lines[0] == str(dlm.infill(model, [row], decoder="entropy").tokens[0])
    assert len(lines) == 4
    assert sorted(int(n) for line in lines[1:] for n in re.findall(r"\d+", line)[1:]) == [1, 3, 4]


@pytest.mark.parametrize("name", ["bert_diffusion", "chat_llada", "dream_infilling"])
def test_decoders_are_named_as_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No list of choices: it would hold those that need options, which these scripts lack."""
    script = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    with pytest.raises(SystemExit):
        script["arguments"](["--help"])
    printed = capsys.readouterr().out
    assert "`dlm decoders`" in printed
    assert "schedule" not in printed


@pytest.mark.parametrize("options", [[], ["--editing-threshold", "0.01"]], ids=["2.0", "2.1"])
def test_llada2_blocks(run: Callable[..., str], options: list[str]) -> None:
    folder = str(FAMILIES / "llada2")
    printed = run("llada2_blocks", folder, "--ids", "3", "4", "5", "--length", "20", *options)
    lines = printed.splitlines()
    assert lines[0] == "attention blocks of 8 tokens"
    assert lines[2] == lines[4], "the cache is exact"
    work = [int(n) for n in re.findall(r"(\d+) tokens computed", printed)]
    assert work[1] < work[0]


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")  # where there is no GPU
def test_fine_tuning(run: Callable[..., str], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "12+3=", "response": "75"}) + "\n")
    data.write_text(data.read_text() * 164)
    options = ("--steps", "30", "--data", str(data), "--output", str(tmp_path / "tuned"))
    assert "12+3= 75\n" * 5 in run("fine_tuning", *options)
    assert dlm.generate(dlm.load(), "12+3=", gen_length=16).texts != ["75"]
    assert dlm.generate(dlm.load(tmp_path / "tuned"), "12+3=", gen_length=16).texts == ["75"]


def test_documented_code_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of docs/huggingface.md, in order, in one namespace; pipelines answer."""
    page = (EXAMPLES.parent / "docs" / "huggingface.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(TINY)
    names: dict[str, Any] = {"torch": torch}
    with silence():
        for block in blocks:
            exec(block, names)
    answer = "[{'generated_text': '60/5=12. 14*7=98. 30+14=44. 50/5=10.'}]"
    assert answer in capsys.readouterr().out
