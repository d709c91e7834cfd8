"""4x4 sudokus: 16 digits row by row, 0 for an empty cell, and the 16 digits of a solution.

Puzzles are generated like those of the published test file: a random grid with random cells
emptied. A quarter of that file has more than one solution. So a generated puzzle need not have a
unique solution, and any valid completion of the givens is correct.
"""

from __future__ import annotations

import csv
import functools
import itertools
import re
from pathlib import Path
from random import Random

from dlm.data.example import Example

PREFIX = "Sudoku: "
CSV_COLUMNS = ("Puzzle", "Solution")
_USUAL_EMPTY = 8
_EMPTY_RANGE = (4, 10)
_USUAL_SHARE = 0.8
_PUZZLE = re.compile("(?<![0-9])[0-4]{16}(?![0-9])")
_UNITS = tuple(
    [tuple(range(4 * r, 4 * r + 4)) for r in range(4)]
    + [tuple(range(c, 16, 4)) for c in range(4)]
    + [(k, k + 1, k + 4, k + 5) for k in (0, 2, 8, 10)]
)


def is_grid(text: str) -> bool:
    """Tells whether 16 characters hold 1 to 4 once in every row, column and box."""
    return len(text) == 16 and all({text[i] for i in unit} == set("1234") for unit in _UNITS)


@functools.cache
def all_grids() -> tuple[str, ...]:
    """Returns the 288 complete grids in lexicographic order."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    halves = [a + b for a in rows for b in rows if _half_is_valid(a + b)]
    return tuple(top + low for top in halves for low in halves if is_grid(top + low))


def _half_is_valid(half: str) -> bool:
    """Tells whether two rows fill both of their boxes."""
    return len({half[i] for i in (0, 1, 4, 5)}) == len({half[i] for i in (2, 3, 6, 7)}) == 4


def generate(rng: Random) -> Example:
    """Draws a grid and empties 8 of its cells in four cases of five, otherwise 4 to 10."""
    solution = rng.choice(all_grids())
    empty = _USUAL_EMPTY if rng.random() < _USUAL_SHARE else rng.randint(*_EMPTY_RANGE)
    cells = list(solution)
    for position in rng.sample(range(16), empty):
        cells[position] = "0"
    return Example("sudoku", PREFIX + "".join(cells), solution)


def is_correct(prompt: str, response: str) -> bool:
    """Tells whether the response is a complete grid that keeps the prompt's givens."""
    puzzle = _PUZZLE.search(prompt)
    answer = "".join(response.split())
    if puzzle is None or not is_grid(answer):
        return False
    return all(given in ("0", cell) for given, cell in zip(puzzle.group(), answer, strict=True))


def read_csv(path: str | Path) -> list[Example]:
    """Reads a file with the columns `Puzzle` and `Solution`.

    Args:
        path: the file, with its header line.

    Returns:
        The examples in the file's order.

    Raises:
        ValueError: a column is missing, or a row is not a puzzle with its solution.
    """
    examples = []
    with Path(path).open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if not set(CSV_COLUMNS) <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: expected columns {CSV_COLUMNS}, got {rows.fieldnames}")
        for row in rows:
            prompt, solution = PREFIX + (row["Puzzle"] or ""), row["Solution"] or ""
            if not is_correct(prompt, solution):
                raise ValueError(f"{path}:{rows.line_num}: not a 4x4 sudoku with its solution")
            examples.append(Example("sudoku", prompt, solution))
    return examples
