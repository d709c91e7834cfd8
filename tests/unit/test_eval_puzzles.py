"""What the metrics of puzzles read in an output, and what they make of it."""

import pytest

from dlm.eval.runner import refuse_code
from dlm.eval.score import Verdict, score
from dlm.eval.task import Problem, Task
from dlm.eval.tasks import TASKS


def verdict(task: Task, problem: Problem, output: str) -> Verdict:
    return score(task, [problem], [output], refuse_code)[0]


GRID = "3142243142131324"


@pytest.mark.parametrize(
    ("output", "solved", "cells"),
    [
        (GRID, 1, 1), (f" {GRID}\n", 1, 1), ("3142\n2431\n4213\n1324", 1, 1),
        ("3102200002100320 becomes\n3 1 4 2\n2 4 3 1\n4 2 1 3\n1 3 2 4\nIn row 4 ...", 1, 1),
        ("|3|1|4|2|\n|2|4|3|1|\n|4|2|1|3|\n|1|3|2|4|", 1, 1),
        ("Rows 1 to 4:\n31 42\n24 31\n-----\n42 13\n13 24", 1, 1),
        ("3142 2431 4213 1324", 1, 1), ("[[3,1,4,2],[2,4,3,1],[4,2,1,3],[1,3,2,4]]", 1, 1),
        ("| 1 | 2 | 3 | 4 |\n|---|---|---|---|\n| 3 | 1 | 4 | 2 |\n| 2 | 4 | 3 | 1 |\n"
         "| 4 | 2 | 1 | 3 |\n| 1 | 3 | 2 | 4 |", 1, 1),
        ("3102\n2000\n0210\n0320\n\n3142\n2431\n4213\n1324\n\nDone.", 1, 1),
        ("3142\n2431\n4213\n1324\n2024", 1, 1), ("1234\n3142\n2431\n4213\n1324\n2024\n5678", 1, 1),
        ("3102\n2000\n0210\n0320\n3142\n2431\n4213\n1323\n1 2 3 4 5", 0, 7 / 8),
        ("3 1 4 2\n2 4 3 1\n4 2 1 3\n1 3 2 3\n1 2 3 4 5", 0, 7 / 8),
        (" ".join(GRID), 1, 1), (" ".join(GRID + "1"), 0, 0), ("3142 2431 4213 1324 8", 1, 1),
        ("1 2 3 4 5\n3142\n2431\n4213\n1324", 1, 1), ("2431\n4213\n1324", 0, 0),
        (GRID[:-1] + "1", 0, 7 / 8), ("3102200002100320", 0, 0), (GRID + "1", 0, 0),
        (GRID[:-1], 0, 0),
        ("1234341221434321", 0, 2 / 8), ("", 0, 0),
    ],
)  # fmt: skip
def test_sudoku(output: str, solved: int, cells: float) -> None:
    fields = {"prompt": "Sudoku: 3102200002100320", "puzzle": "3102200002100320", "rows": ""}
    found = verdict(TASKS["sudoku"], Problem("0", fields, GRID), output)
    assert found.scores == {"solved": solved, "cells": pytest.approx(cells)}


@pytest.mark.parametrize(
    ("output", "valid", "exact"),
    [
        ("44-15=29,79-29=50", 1, 1), ("44 - 15 = 29\n79 - 29 = 50", 1, 1),
        ("First 15+44=59, no.\nAnswer: 44-15=29, then 79-29=50.", 1, 1),
        ("79-44=35,35+15=50", 1, 0), ("44-15=29,79-29=51", 0, 0), ("79-29=50", 0, 0),
        ("44-15=29,79-29=50,1+1=2", 0, 0), ("15-44=-29,79+-29=50", 1, 0), ("50", 0, 0), ("", 0, 0),
        ("79-44+15=50", 0, 0), ("44-15=29\n100+79-29=50", 0, 0),
        ("**44-15=29**, **79-29=50**", 1, 1), ("*44-15=29,79-29=50*", 1, 1),
        ("44 - 15 = **29**, 79 - 29 = __50__", 1, 1), ("* 44-15=29\n* 79-29=50", 1, 1),
        ("1) **44-15=29**\n2) **79-29=50**", 1, 1), ("1 **44 - 15=29** (a) **79-29=50**", 1, 1),
        ("44  -  15  =  29, 79\u221229=50", 1, 1), ("44-15=29.0, 79-29=50.", 1, 1),
        ("44-15=29,79-29=50.5", 0, 0), ("44-15=29,79-29=50.05", 0, 0),
        ("44-15=29,1+78**2=79,79-29=50", 1, 1), ("44-15=29,79-29=50\n\nCheck: 79-29=50", 1, 1),
        ("44-15=29,79-29=50. So 44-15=29, 79-29=50.", 1, 1), ("79-29=50,79-29=50", 0, 0),
        ("15-44=-29, 79 + (-29) = 50", 1, 0), ("15-44=(-29), 79+-29=50", 1, 0),
        ("(44-15)=29, 79-29=50", 1, 1), ("15-44=(-29), (-29)+79=50", 1, 0),
        ("1) (44 - 15) = 29\n2. (79 - (29)) = (50)", 1, 1),
        ("- (44-15) = 29\n- (79-29) = 50", 1, 1), ("(1) 44-15=29\n(2) 79-29=50", 1, 1),
        ("(1)44-15=29\n- (2)79-29=50", 1, 1), ("2(44-15)=29, 79-29=50", 0, 0),
        ("44-15=29, (79) - (29) = 50", 1, 1), ("(44)-(15)=29, ( 79 )-29=50", 1, 1),
        ("((44) - (15)) = 29\nThen (79) - 29 = (50)", 1, 1), ("(44)-15=29\n- (79)-29=50", 1, 1),
        ("15-44=-29, (1) -29+79=50", 1, 0), ("44-15=29, (1)\n- 79-29=50", 1, 1),
        ("44-15=29, f(79)-29=50", 0, 0), ("44-15=29, 2(79)-29=50", 0, 0),
        ("44-15=29, 2 (79)-29=50", 0, 0), ("44-15=29, (1+1)(79)-29=50", 0, 0),
        ("44-15=29, 1 + (79-29)=50", 0, 0), ("44-15=29, (1+79)-29=50", 0, 0),
    ],
)  # fmt: skip
def test_countdown(output: str, valid: int, exact: int) -> None:
    fields = {"prompt": "Countdown: 15,44,79,50", "numbers": "15, 44, 79", "target": "50"}
    found = verdict(TASKS["countdown"], Problem("0", fields, "44-15=29,79-29=50"), output)
    assert found.scores == {"valid": valid, "exact": exact}


def test_countdown_counts_each_equation_with_parentheses() -> None:
    """Those that are not read would leave a right answer of the others alone."""
    fields = {"prompt": "Countdown: 1,1,2,4", "numbers": "1, 1, 2", "target": "4"}
    told = verdict(TASKS["countdown"], Problem("0", fields, ""), "(5)+(3)=8, 1+1=2, 2+2=4")
    assert told.extracted["valid"] == "1+1=2,2+2=4"
    fields |= {"numbers": "1, 1, 2, 5"}
    told = verdict(TASKS["countdown"], Problem("0", fields, ""), "(5)+(3)=8, 1+1=2, 2+2=4")
    assert told.extracted["valid"] == "5+3=8,1+1=2,2+2=4"


@pytest.mark.parametrize(
    "sign", ["*", " * ", "\u00d7", "x", " X ", "\u00b7", r"\times ", r" \cdot"]
)
def test_countdown_reads_products(sign: str) -> None:
    fields = {"prompt": "Countdown: 1,4,6,25", "numbers": "1, 4, 6", "target": "25"}
    given = Problem("0", fields, "4*6=24,24+1=25")
    found = verdict(TASKS["countdown"], given, f"$4{sign}6 = 24$, $24 + 1 = 25$")
    assert found.scores == {"valid": 1, "exact": 1}
    twice = {"prompt": "Countdown: 5,1,1,5", "numbers": "5, 1, 1", "target": "5"}
    assert verdict(TASKS["countdown"], Problem("0", twice, ""), "5*1=5,5*1=5").scores["valid"]
