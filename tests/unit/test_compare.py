"""The comparison of decoders: whole, resumable, and its page up to date."""

import json
import sys
from pathlib import Path

import pytest

import dlm
from dlm.data import generate_examples, sudoku
from dlm.decoders import DECODERS
from dlm.training import compare
from dlm.training.cells import COUNTS, Results, plan, points
from dlm.training.page import BEGIN, END, table

DOCS = Path(__file__).parents[2] / "docs"
CHOSEN = ["--decoder", "threshold", "--decoder", "random", "--count", "2", "--seeds", "2"]


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sudoku.csv"
    examples = list(generate_examples("sudoku", 0, count=3, split="test"))
    rows = [f"{each.prompt.removeprefix(sudoku.PREFIX)},{each.response}\n" for each in examples]
    path.write_text("Puzzle,Solution\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def finished(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "decoders"
    compare.main(["--sudoku", str(puzzles), "--out", str(out), *CHOSEN])
    return (out / "results.jsonl").read_text()


def test_weights_of_any_dtype_have_a_checksum() -> None:
    model, wide = dlm.load(dtype="bfloat16"), dlm.load()
    assert compare.checksum(model, {}) == compare.checksum(dlm.load(dtype="bfloat16"), {})
    assert compare.checksum(model, {}) != compare.checksum(wide, {})


def left_over(text: str, folder: Path) -> Path:
    """A folder that a run has left `text` in."""
    out = folder / "decoders"
    out.mkdir()
    (out / "results.jsonl").write_text(text)
    return out


def test_every_decoder_is_compared_once_a_setting() -> None:
    cells = list(plan(DECODERS, 3))
    assert {(cell.task, cell.way.decoder) for cell in cells} == {
        (task, decoder) for task in COUNTS for decoder in DECODERS
    }
    keys = [Results.name(cell.key) for cell in cells]
    assert len(set(keys)) == len(keys)


def test_seeds_are_for_settings_that_draw() -> None:
    seeds = {(cell.way.decoder, cell.way.temperature, cell.seed) for cell in plan(DECODERS, 3)}
    assert ("random", 0.0, 2) in seeds
    assert ("first_hitting", 1.0, 2) in seeds
    assert ("threshold", 0.0, 0) in seeds
    assert ("threshold", 0.0, 1) not in seeds


def test_lines_hold_what_was_measured(finished: str) -> None:
    lines = [json.loads(line) for line in finished.splitlines()]
    assert len(lines) == len(list(plan(["threshold", "random"], 2)))
    for line in lines:
        assert 0 <= line["solved"] <= line["total"] == 2
        assert line["forwards"] >= 1
        assert line["tokens_per_forward"] >= 1
    whole = [line for line in lines if line["task"] == "sudoku" and line["steps"] == 20]
    assert [line["seed"] for line in whole] == [0, 1]
    assert all(line["forwards"] <= 20 for line in whole)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
def test_an_interrupted_run_goes_on(
    share: float, finished: str, puzzles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = finished[: int(share * len(finished))]
    out = left_over(cut, tmp_path)
    compare.main(["--sudoku", str(puzzles), "--out", str(out), *CHOSEN])
    assert (out / "results.jsonl").read_text() == finished
    told = capsys.readouterr().err.count(" solved, ")
    assert told == finished.count("\n") - cut.count("\n"), "what is finished is not done again"


def test_again_forgets_the_chosen_decoders_alone(
    finished: str, puzzles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = left_over(finished, tmp_path)
    options = ["--sudoku", str(puzzles), "--out", str(out), *CHOSEN[2:], "--again"]
    compare.main(options)
    assert (out / "results.jsonl").read_text() == finished
    assert " threshold " not in capsys.readouterr().err


def test_results_of_other_problems_are_refused(
    finished: str, puzzles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = left_over(finished, tmp_path)
    with pytest.raises(SystemExit):
        compare.main(["--sudoku", str(puzzles), "--out", str(out), "--count", "3"])
    assert "of this model and these problems alone" in capsys.readouterr().err
    assert (out / "results.jsonl").read_text() == finished


def test_a_run_needs_the_puzzles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--out", str(tmp_path / "decoders")])
    assert "needs --sudoku" in capsys.readouterr().err


def test_rendering_without_matplotlib_names_the_extra(
    finished: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = left_over(finished, tmp_path)
    with pytest.raises(SystemExit):
        compare.main(["--render", "--out", str(out)])
    assert 'pip install -e ".[plot]"' in capsys.readouterr().err
    assert not out.with_suffix(".md").exists()


def test_rendering_keeps_the_page_around_the_tables(finished: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = left_over(finished, tmp_path)
    page = out.with_suffix(".md")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    compare.main(["--render", "--out", str(out)])
    tables = table(Results(out / "results.jsonl"))
    assert page.read_text() == f"before\n{BEGIN}\n{tables}\n{END}\nafter\n"
    assert (out / "accuracy.svg").read_text().count("threshold") >= len(COUNTS)


def test_rendering_wants_the_markers(
    finished: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = left_over(finished, tmp_path)
    out.with_suffix(".md").write_text("no markers\n")
    with pytest.raises(SystemExit):
        compare.main(["--render", "--out", str(out)])
    assert "around its tables" in capsys.readouterr().err


def test_seeds_are_averaged(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    cells = [cell for cell in plan(["random"], 2) if cell.task == "sudoku"][:2]
    for cell, solved in zip(cells, (1, 3), strict=True):
        measured = {"solved": solved, "total": 4, "forwards": 2.0, "tokens_per_forward": 10.0}
        results.add({**cell.key, **measured, "inputs": ""})
    point = points(results, "sudoku", "random")[0]
    assert point is not None
    assert point.solved == 50
    assert point.spread == pytest.approx(50 / 2**0.5)
    assert points(results, "sudoku", "random")[1] is None


def test_the_published_page_is_what_its_results_say() -> None:
    results = Results(DOCS / "decoders" / "results.jsonl")
    text = (DOCS / "decoders.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0] == f"\n{table(results)}\n"
