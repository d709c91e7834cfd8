"""Options of the measurement of schedules that end in a line."""

from pathlib import Path

import pytest

from dlm.distill import schedule_measure


@pytest.mark.parametrize(
    ("rows", "option", "told"),
    [
        (["3102200002100320,3142243142131324"], "--count=0", "--count must be an int >= 1, got 0"),
        (["3102200002100320,3142243142131324"], "--count=-1", "--count must be an int >= 1, got"),
        ([], "--count=1", "--sudoku must hold at least one puzzle, got"),
    ],
)
def test_no_problems_are_refused(
    rows: list[str], option: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schedule-2.json").write_text("{}")
    puzzles = tmp_path / "puzzles.csv"
    puzzles.write_text("\n".join(["Puzzle,Solution", *rows]) + "\n")
    args = ["--task=sudoku", f"--schedules={tmp_path}", "--budget=2", f"--sudoku={puzzles}"]
    with pytest.raises(SystemExit) as end:
        schedule_measure.main([*args, option])
    assert end.value.code == 2
    assert told in capsys.readouterr().err
