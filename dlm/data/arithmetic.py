"""Plain sums, differences, products and exact quotients, written like the steps of a word problem.

A word problem has two or three such steps in about seventy tokens. Here every second token of the
response is a result, so that a small model sees each fact often enough to learn it.
"""

from __future__ import annotations

import re
from random import Random

from dlm.data.example import Example

PREFIX = "Compute: "
_LARGEST = 99
_COUNT = 4
_PROMPT = re.compile(r"Compute: ((?:[0-9]{1,4}[-+*/][0-9]{1,4}(?:, )?)+)")
_TERM = re.compile(r"([0-9]{1,4})([-+*/])([0-9]{1,4})")


def calculate(a: int, operation: str, b: int) -> int | None:
    """Returns the result, or None if it is not a natural number."""
    if operation == "/":
        return a // b if b and a % b == 0 else None
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return result if result >= 0 else None


def generate(rng: Random) -> Example:
    """Draws four terms with results up to 99."""
    terms = [_draw(rng) for _ in range(_COUNT)]
    prompt = PREFIX + ", ".join(f"{a}{operation}{b}" for a, operation, b in terms)
    return Example("arithmetic", prompt, solve(prompt) or "")


def _draw(rng: Random) -> tuple[int, str, int]:
    """Draws one term: a sum or difference of up to two digits, or a product of small numbers."""
    operation = rng.choice("+-**/")
    if operation in "+-":
        a, b = rng.randint(2, 60), rng.randint(2, 39)
        return (max(a, b), "-", min(a, b)) if operation == "-" else (a, "+", b)
    a, b = rng.randint(2, 25), rng.randint(2, 9)
    while a * b > _LARGEST:
        a = rng.randint(2, 25)
    return (a * b, "/", b) if operation == "/" else (a, "*", b)


def solve(prompt: str) -> str | None:
    """Returns the equations of a prompt, or None for any other text."""
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        return None
    equations = []
    for left, operation, right in _TERM.findall(match[1]):
        result = calculate(int(left), operation, int(right))
        if result is None:
            return None
        equations.append(f"{left}{operation}{right}={result}.")
    return " ".join(equations)


def is_correct(prompt: str, response: str) -> bool:
    """Tells whether the response equals the prompt's equations, up to white space."""
    expected = solve(prompt)
    return expected is not None and response.split() == expected.split()
