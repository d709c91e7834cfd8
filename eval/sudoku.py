"""4x4 sudokus: fill every row, column and 2x2 box with 1 to 4.

Puzzles have the format of the benchmark of Huang et al. 2025 (PC-Sampler, arXiv:2508.13021): 500 of
them with `--data sudoku_4x4.csv`, else 500 generated ones that the built-in model never saw.

    Puzzle,Solution
    3102200002100320,3142243142131324

A quarter of the published puzzles have several solutions, and `solved` accepts each of them.
`cells` is the share of empty cells that match the reference, and so is too strict for these
puzzles.

Checked against the original:
- The 500 reference solutions are solved.
- Different from the original: the prompts, and how an answer is found in a longer text.
"""

import csv
import re
from pathlib import Path

from dlm.data import Example, sudoku
from dlm.eval.extract import last_match
from dlm.eval.presets import published
from dlm.eval.source import drawn, held_in
from dlm.eval.task import Metric, Preset, Problem, Source, Task, Template

COUNT = 500

_ROW = r"[0-9](?:[ \t|,]*[0-9]){3}"
_BETWEEN = r"[\s|,;+\[\]-]+"
_BEGIN = r"(?:(?<![0-9][ \t])|(?![0-9][ \t]))"  # a row with spaces is not cut out of a longer one
_END = r"(?!(?<=[ \t][0-9])[ \t]+[0-9])"
_GRID = re.compile(
    rf"(?<![0-9])(?:[0-9]{{16}}|{_BEGIN}{_ROW}(?:{_BETWEEN}{_ROW}){{3,}}{_END})(?![0-9])"
)


def problem(number: int, example: Example) -> Problem:
    """An example as a problem; its id is its index."""
    puzzle = example.prompt.removeprefix(sudoku.PREFIX)
    rows = "\n".join(puzzle[at : at + 4] for at in range(0, 16, 4))
    fields = {"prompt": example.prompt, "puzzle": puzzle, "rows": rows}
    return Problem(str(number), fields, example.response)


def read(path: Path) -> list[Problem]:
    """Read the puzzles of a file in the published format.

    Raises:
        ValueError: the file is invalid.
    """
    try:
        found = sudoku.read_csv(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: must be CSV in UTF-8 ({error})") from None
    return [problem(number, each) for number, each in enumerate(found)]


def local() -> list[Problem]:
    """Generated puzzles that the built-in model has never seen."""
    found = drawn("sudoku", COUNT, held_out=True)
    return [problem(number, each) for number, each in enumerate(found)]


def grid(problem: Problem, output: str) -> str | None:
    """The last 16 adjacent digits, or the last four consecutive rows of four.

    Other rows of digits may be around these, such as the puzzle, column numbers or a year. Of all
    runs of four rows, the last valid grid is taken, else the last run.
    """
    found = last_match(_GRID, output)
    if found is None:
        return None
    digits = re.sub("[^0-9]", "", found.group())
    windows = [digits[end - 16 : end] for end in range(len(digits), 15, -4)]
    return next(filter(sudoku.is_grid, windows), windows[0])


def solved(problem: Problem, extracted: str) -> bool:
    """Whether the answer is a valid grid that keeps the givens."""
    return sudoku.is_correct(problem.fields["prompt"], extracted)


def cells(problem: Problem, extracted: str) -> float:
    """The share of empty cells that match the reference."""
    triples = zip(problem.fields["puzzle"], problem.answer, extracted, strict=True)
    right = [told == wanted for given, wanted, told in triples if given == "0"]
    return sum(right) / len(right) if right else 1.0


EXPLAINED = """\
Complete this 4x4 sudoku. Every row, every column and every 2x2 box must hold each of the digits \
1 to 4 once; 0 stands for an empty cell.

{rows}

Answer with the 16 digits of the completed grid, row by row, and nothing else."""

TASK = Task(
    name="sudoku",
    # What earlier versions did wrong. 3: a row of digits under the grid was read as its last one.
    # 2: thoughts were read. 1: a row of digits over the grid was read as its first one
    version=4,
    summary="Complete 4x4 sudokus.",
    paper="Huang et al. 2025, arXiv:2508.13021",
    licence="Apache-2.0 where generated, MIT where published",
    source=Source(
        read=read,
        local=local,
        examples=held_in("sudoku", problem, sudoku.read_csv),
        where="sudoku_4x4.csv of PC-Sampler",
    ),
    templates=(
        Template("plain", "{prompt}", chat=True),
        Template("explained", EXPLAINED, chat=True),
        Template(
            "base_5shot",
            "Puzzle: {puzzle}\nSolution:",
            shots=5,
            target=" {answer}",
            instruction="4x4 sudokus, row by row, 0 for an empty cell.\n\n",
            until=("Puzzle:", "\n\n"),
        ),
    ),
    metrics=(Metric("solved", grid, solved), Metric("cells", grid, cells)),
    presets=(
        Preset(
            "built-in",
            {"gen_length": 20, "block_length": None},
            "README, built-in model, the 500 published puzzles",
            "100.0 at 20.0 forwards; 98.2 at 1.7 with threshold 0.9",
        ),
        *published("sudoku"),
    ),
)
