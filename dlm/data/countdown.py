"""Countdown: reach the last number from the three before it, using each exactly once.

The published test file (Stream of Search format, Gandhi et al. 2024, arXiv:2404.03683) records the
first solution of a depth-first search over pairs in order, each with `+`, `*`, `-`, `/`, where the
last two put the larger number first. `solve` repeats that search and gives the file's answer for
all of its 1,000 rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from dlm.data.example import Example, string_fields

PREFIX = "Countdown: "
FILE_TARGETS = (22, 24, 25, 30, 32, 50, 65, 67, 96)  # the nine targets of the test file
_ANY_TARGET = (10, 99)
_LARGEST_NUMBER = 99
_ROW = re.compile("(?<![0-9])[0-9]{1,4}(?:,[0-9]{1,4}){2,6}(?![0-9])")
_EQUATION = re.compile("(-?[0-9]{1,9})([-+*/])(-?[0-9]{1,9})=(-?[0-9]{1,9})")


def _combinations(a: int, b: int) -> Iterator[tuple[int, str]]:
    """Yields each result of one operation on `a` and `b` with its equation, in search order."""
    large, small = max(a, b), min(a, b)
    yield a + b, f"{a}+{b}={a + b}"
    yield a * b, f"{a}*{b}={a * b}"
    yield large - small, f"{large}-{small}={large - small}"
    if small and large % small == 0:
        yield large // small, f"{large}/{small}={large // small}"


def solve(numbers: Sequence[int], target: int) -> tuple[str, ...] | None:
    """Returns the equations of the first solution in search order, or None if there is none."""
    if len(numbers) == 1:
        return () if numbers[0] == target else None
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for result, equation in _combinations(numbers[i], numbers[j]):
            equations = solve([*rest, result], target)
            if equations is not None:
                return (equation, *equations)
    return None


def _has_solution(numbers: Sequence[int], target: int) -> bool:
    """Tells whether `solve` would find a solution for three positive numbers, only faster."""
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        large, small, other = max(numbers[i], numbers[j]), min(numbers[i], numbers[j]), numbers[k]
        results = [large + small, large * small, large - small]
        if large % small == 0:
            results.append(large // small)
        for result in results:
            if target in (result + other, result * other, abs(result - other)):
                return True
            if result == target * other or result * target == other:
                return True
    return False


def generate(rng: Random) -> Example:
    """Draws a target, half the time one of the test file's nine, and numbers that reach it."""
    target = rng.choice(FILE_TARGETS) if rng.random() < 0.5 else rng.randint(*_ANY_TARGET)
    while True:
        numbers = [rng.randint(1, _LARGEST_NUMBER) for _ in range(3)]
        equations = solve(numbers, target) if _has_solution(numbers, target) else None
        if equations is not None:
            row = ",".join(map(str, [*numbers, target]))
            return Example("countdown", PREFIX + row, ",".join(equations))


def is_correct(prompt: str, response: str) -> bool:
    """Tells whether the equations are true, use every given number once and end at the target."""
    row = _ROW.search(prompt)
    if row is None:
        return False
    *pool, target = map(int, row.group().split(","))
    equations = "".join(response.split()).split(",")
    if len(equations) != len(pool) - 1:
        return False
    return all(_apply(equation, pool) for equation in equations) and pool == [target]


def _apply(equation: str, pool: list[int]) -> bool:
    """Replaces the operands of a true equation in `pool` by its result; False if it is not true."""
    match = _EQUATION.fullmatch(equation)
    if match is None:
        return False
    a, b, result = int(match[1]), int(match[3]), int(match[4])
    for operand in (a, b):
        if operand not in pool:
            return False
        pool.remove(operand)
    pool.append(result)
    true_result = {"+": a + b == result, "-": a - b == result, "*": a * b == result}
    return true_result.get(match[2], b != 0 and result * b == a)


def read_jsonl(path: str | Path) -> list[Example]:
    """Reads a file of lines `{"input": "a,b,c,target", "output": "equation,equation"}`.

    Args:
        path: the file; blank lines are skipped.

    Returns:
        The examples in the file's order.

    Raises:
        ValueError: a line is not such an object, or its output does not solve its input.
    """
    examples = []
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            fields = string_fields(line, ("input", "output"), f"{path}:{number}")
            prompt = PREFIX + fields["input"]
            if not is_correct(prompt, fields["output"]):
                raise ValueError(f"{path}:{number}: not a countdown row with its solution")
            examples.append(Example("countdown", prompt, fields["output"]))
    return examples
