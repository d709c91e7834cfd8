"""Grade-school word problems from this project's templates, with steps that end in `#### N`.

The reference answer is recovered from the prompt: the matching template is inverted to get the
numbers, and its steps are computed again. Every number stays within 0..99.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from random import Random

from dlm.data.example import Example
from dlm.data.patterns import template_pattern
from dlm.data.word_templates import NAMES, TEMPLATES, THINGS, Template

_LARGEST = 99
_NUMBER_SLOTS = frozenset("abcd")
_STEP = re.compile("([a-z0-9]+)([-+*/])([a-z0-9]+)")
_ANSWER = re.compile(r"\s*(-?[0-9]{1,6})(?![0-9]|[.,/][0-9])")


def _operand(text: str, values: Mapping[str, int]) -> int:
    """Returns a literal number, a slot's number or an earlier step's result (r1, r2, ...)."""
    return int(text) if text.isdigit() else values[text]


def _calculate(a: int, operation: str, b: int) -> int | None:
    """Returns the result of one step, or None if it leaves 0..99 or does not divide evenly."""
    if operation == "/":
        return a // b if b and a >= b and a % b == 0 else None
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return result if 0 <= result <= _LARGEST else None


def work_out(template: Template, numbers: Mapping[str, int]) -> str | None:
    """Writes the template's steps for these numbers; None if a step has no valid result."""
    values = dict(numbers)
    steps = []
    for index, step in enumerate(template.steps.split(), start=1):
        match = _STEP.fullmatch(step)
        assert match is not None, f"malformed step {step!r}"
        a, operation, b = _operand(match[1], values), match[2], _operand(match[3], values)
        result = _calculate(a, operation, b)
        if result is None:
            return None
        values[f"r{index}"] = result
        steps.append(f"{a}{operation}{b}={result}.")
    return f"{' '.join(steps)} #### {result}"


def generate(rng: Random) -> Example:
    """Draws a template, its names and objects, and numbers that make every step valid."""
    template = rng.choice(TEMPLATES)
    names, things = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    words = {"n": names[0], "m": names[1], "t": things[0], "u": things[1]}
    while True:
        numbers = {slot: rng.randint(*bounds) for slot, bounds in template.ranges.items()}
        response = work_out(template, numbers)
        if response is not None:
            return Example("word_problems", template.text.format(**words, **numbers), response)


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], Template], ...]:
    """Compiles every template once."""
    return tuple((template_pattern(t.text, _NUMBER_SLOTS), t) for t in TEMPLATES)


def reference(prompt: str) -> str | None:
    """Returns the worked steps of a generated prompt, or None for any other text."""
    for pattern, template in _patterns():
        match = pattern.fullmatch(prompt.strip())
        if match is not None:
            numbers = {slot: int(match[slot]) for slot in template.ranges}
            return work_out(template, numbers)
    return None


def final_answer(text: str) -> int | None:
    """Returns the integer after the last `####`, or None if there is none."""
    _, marker, tail = text.rpartition("####")
    match = _ANSWER.match(tail) if marker else None
    return None if match is None else int(match[1])


def is_correct(prompt: str, response: str) -> bool:
    """Tells whether the number after the last `####` is the answer to a generated prompt."""
    expected = reference(prompt)
    return expected is not None and final_answer(response) == final_answer(expected)
