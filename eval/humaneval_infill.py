r"""HumanEval infilling: write lines of a Python function between given ones.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle",
arXiv:2207.14255: HumanEval-SingleLineInfilling, 1,033 problems, and -MultiLineInfilling, 5,815.
They are made from the records of HumanEval (`dlm.eval.humaneval`). There is a single-line problem
for each non-blank line of the reference solution, and a multi-line problem for each pair of such
lines, the first and the last line to fill. The record shown there, whose solution has one line,
gives

    SingleLineInfilling/HumanEval/0/L0 and MultiLineInfilling/HumanEval/0/L0_L0
    prefix "def twice(x):\n    '2 x'\n", answer "    return 2 * x\n", suffix ""

An answer includes the indentation of its first line and the newline of its last, as in the example
of DreamOn's README: prefix + answer + suffix is prompt + solution.

Checked against what is published of the original (human-eval-infilling): the number of problems,
their names, and the program, which is prefix + output + suffix followed by the tests of HumanEval.
An output is used as it is: nothing is cut from it, and no code is searched for in it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dlm.eval import humaneval
from dlm.eval.presets import published
from dlm.eval.task import Check, InfillTemplate, Metric, Preset, Problem, Source, Task

FIXED = (4, 8, 16, 32, 64)  # blanks of templates that do not know the length of the reference

Spans = Callable[[list[int]], Iterator[tuple[str, int, int]]]
"""From the non-blank lines, the name, first line and last line of each problem."""


def single(lines: list[int]) -> Iterator[tuple[str, int, int]]:
    """A problem for each line."""
    for line in lines:
        yield f"L{line}", line, line


def multi(lines: list[int]) -> Iterator[tuple[str, int, int]]:
    """A problem from each line to itself and to each later line."""
    for number, first in enumerate(lines):
        for last in lines[number:]:
            yield f"L{first}_L{last}", first, last


def cut(whole: Problem, kind: str, spans: Spans) -> Iterator[Problem]:
    """The infilling problems of one HumanEval problem."""
    prompt = whole.fields["prompt"]
    lines = re.split(r"(?<=\n)", whole.answer)  # each with its newline
    for name, first, last in spans([n for n, line in enumerate(lines) if line.strip()]):
        fields = {
            "prefix": prompt + "".join(lines[:first]),
            "suffix": "".join(lines[last + 1 :]),
        }
        answer = "".join(lines[first : last + 1])
        data = {**whole.data, "prompt": prompt}
        yield Problem(f"{kind}/{whole.id}/{name}", fields, answer, data)


def program(problem: Problem, output: str) -> str:
    """The program that an output completes."""
    return problem.fields["prefix"] + output + problem.fields["suffix"]


def check(problem: Problem, code: str) -> Check:
    """The tests of HumanEval."""
    return humaneval.check_of(problem.data, problem.data["prompt"], code)


def is_reference(problem: Problem, output: str) -> bool:
    """Whether an output equals the reference, ignoring whitespace around it."""
    return output.strip() == problem.answer.strip()


def source(kind: str, spans: Spans) -> Source:
    """The source of HumanEval, with each problem turned into infilling problems."""

    def each(found: list[Problem]) -> list[Problem]:
        return [part for whole in found for part in cut(whole, kind, spans)]

    return Source(
        read=lambda path: each(humaneval.read(path)),
        local=lambda: each(humaneval.local()),
        hub=lambda: each(humaneval.hub()),
        where=f"{humaneval.HUB}, split test",
    )


def task(name: str, kind: str, spans: Spans, summary: str) -> Task:
    """Create one of the two benchmarks."""
    usual: Mapping[str, Any] = {
        "decoder": "low_confidence",
        "decoder_options": {},
        "block_length": None,
    }
    return Task(
        name=name,
        version=1,
        summary=summary,
        paper="Bavarian et al. 2022, arXiv:2207.14255",
        licence="MIT",
        source=source(kind, spans),
        templates=(
            InfillTemplate("oracle"),
            *(InfillTemplate(f"blanks_{count}", count) for count in FIXED),
        ),
        metrics=(
            Metric("pass@1", program, check=check),
            Metric("exact match", lambda problem, output: output, is_reference),
        ),
        presets=(Preset("usual", usual, "one token a forward; of no paper"), *published(name)),
    )


SINGLE_LINE = task(
    "humaneval_infill",
    "SingleLineInfilling",
    single,
    "Fill in a line of a Python function; programs are executed.",
)
MULTI_LINE = task(
    "humaneval_infill_multi",
    "MultiLineInfilling",
    multi,
    "Fill in lines of a Python function; programs are executed.",
)
