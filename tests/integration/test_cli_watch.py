"""`dlm generate --watch`: what it draws."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli.watch import AGES, EDITED, REMASKED, SPECIAL, Picture, Symbols, draw
from dlm.models.loading import BUILT_IN
from dlm.models.model import Model
from dlm.outputs import Snapshot

TOKENIZER = Path(dlm.__file__).parent / "assets" / BUILT_IN


def run(*args: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, list(args), input=stdin, prog_name="dlm")


def run_well(*args: str, stdin: str = "") -> Any:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def test_watch_without_a_terminal_prints_a_line_a_forward(folder: str, model: Model) -> None:
    args = ["--model", folder, "--device=cpu", "--gen-length=6", "--no-stop-at-eos"]
    result = run_well("generate", "x", "--watch", *args)
    steps = list(dlm.stream(model, "x", gen_length=6, stop_at_eos=False))
    *lines, _ = result.stdout.splitlines()
    assert len([line for line in lines if line[:4].strip().isdigit()]) == len(steps)
    assert lines[0].count(Symbols().mask) == 5
    assert result.stdout.endswith(f"{steps[-1].text}\n")
    assert result.stderr.startswith("stdout is no terminal")
    assert "6 forwards, 1.00 tokens per forward" in result.stderr


def snapshot(tokens: list[int], forward: int = 1, **changes: Any) -> Snapshot:
    lists_ = {"committed": [], "remasked": [], "edited": [], "filled": []} | changes
    return Snapshot(forward=forward, tokens=tokens, text="end", done=False, **lists_)


@pytest.fixture
def picture(model: Model) -> Picture:
    assert model.tokenizer is not None
    mask = model.spec.mask_id
    return Picture(model.tokenizer, mask, [mask] * 4, frozenset(model.spec.stop_ids), Symbols())


def test_picture_colours_by_age(picture: Picture, model: Model) -> None:
    mask = model.spec.mask_id
    picture.update(snapshot([30, mask, mask, mask], committed=[0]))
    assert picture.style(0) == AGES[0]
    picture.update(snapshot([30, 31, mask, mask], forward=2, committed=[1]))
    assert [picture.style(n) for n in (0, 1)] == [AGES[1], AGES[0]]
    picture.update(snapshot([32, mask, mask, mask], forward=3, edited=[0], remasked=[1]))
    assert [picture.style(n) for n in (0, 1)] == [EDITED, REMASKED]
    picture.update(snapshot([32, mask, mask, mask], forward=3 + len(AGES)))
    assert picture.style(0) == ""


def test_picture_gives_what_is_filled_over_no_age(picture: Picture, model: Model) -> None:
    mask, stop, fill = model.spec.mask_id, model.spec.stop_ids[-1], model.spec.eos_id
    picture.update(snapshot([mask, mask, 31, fill], committed=[2, 3]))
    picture.update(snapshot([30, stop, fill, fill], forward=2, committed=[0, 1]))
    assert [picture.style(n) for n in range(4)] == [AGES[0], AGES[0], SPECIAL, AGES[1]]


def test_picture_gives_what_one_forward_writes_and_fills_over_no_age(
    picture: Picture, model: Model
) -> None:
    stop, fill = model.spec.stop_ids[-1], model.spec.eos_id
    ends = snapshot([30, stop, fill, fill], committed=[0, 1, 2, 3], filled=[2])
    picture.update(ends)
    assert [picture.style(n) for n in range(4)] == [AGES[0], AGES[0], SPECIAL, AGES[0]]


def test_picture_shows_the_token_that_was_taken_back(picture: Picture, model: Model) -> None:
    """Once more, struck through, at the forward that remasks it; then it is a mask."""
    assert model.tokenizer is not None
    mask, symbols = model.spec.mask_id, Symbols()
    picture.update(snapshot([30, 31, mask, mask], committed=[0, 1]))
    before = picture.piece(1)
    picture.update(snapshot([30, mask, 33, mask], forward=2, committed=[2], remasked=[1]))
    assert picture.piece(1) == before != symbols.mask
    assert picture.style(1) == REMASKED
    assert f"~{before}~" in picture.plain()
    assert picture.caption().endswith("2 left   1 taken back")
    picture.update(snapshot([30, mask, 33, mask], forward=3))
    assert picture.piece(1) == symbols.mask
    assert "taken back" not in picture.caption()


def test_picture_draws_what_has_no_text(picture: Picture, model: Model) -> None:
    assert model.tokenizer is not None
    (newline,) = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    (escape,) = model.tokenizer("\x1b", add_special_tokens=False)["input_ids"]
    picture.update(snapshot([newline, escape, model.spec.eos_id, model.spec.mask_id]))
    symbols = Symbols()
    assert picture.plain() == f"{symbols.newline}\ufffd{symbols.special}{symbols.mask}"
    assert [line.plain for line in picture.lines(80)] == [
        symbols.newline,
        f"\ufffd{symbols.special}{symbols.mask}",
    ]
    assert [len(line) for line in picture.lines(2)] == [1, 2, 1]
    assert Symbols.of("ascii").mask.isascii()
    assert Symbols.of("utf-8") == symbols


def test_picture_of_a_tall_canvas_shows_where_the_masks_are(picture: Picture) -> None:
    picture.update(snapshot([30] * 50 + [picture.mask_id] + [30] * 49))
    console = Console(width=1 + len(picture.piece(0)), height=8, file=io.StringIO())
    shown = picture.frame(*console.size)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert Symbols().mask in text


def test_draw_shows_every_forward_on_a_terminal(
    picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.cli.watch.FRAME", 0)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, height=20)
    mask = picture.mask_id
    steps = [
        snapshot([30, mask, mask, mask], committed=[0]),
        snapshot([30, 31, 32, mask], forward=2, committed=[1, 2]),
    ]
    # What is filled in behind an end of text is not decoded, and what is taken back is undone.
    steps.append(snapshot([mask, 31, 32, 30], forward=3, committed=[], remasked=[0]))
    assert draw(iter(steps), picture, console) == "end"
    assert "forward 3   0.67 tokens per forward   1 left" in screen.getvalue()
    assert "forward 1   1.00 tokens per forward   3 left" in screen.getvalue()
    assert "forward 2   1.50 tokens per forward   1 left" in screen.getvalue()
