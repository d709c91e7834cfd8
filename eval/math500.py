r"""MATH-500: 500 competition problems whose answers are mathematics in LaTeX.

Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset",
arXiv:2103.03874; the 500 are the test split of Lightman et al. 2023, arXiv:2305.20050.

    {"unique_id": "test/algebra/0.json", "problem": "Solve $2x = 1$.", "answer": "\\frac{1}{2}",
     "solution": "Halve: $x = \\boxed{\\frac{1}{2}}$.", "subject": "Algebra", "level": 1}

The score is `verified`: math-verify finds the answers equal, or `exact` does, which compares the
last `\boxed{}` with the reference as strings.

Checked against the original:
- All 500 references, in a box, are verified against themselves, also by math-verify alone.
- So are they without a box, as `The answer is $X$.` and in the wording of minerva_math.
- Different from lm-eval 0.4.13, tasks/minerva_math: the last box, or what the last line states if
  there is none (`dlm.eval.stated`), is compared with the reference answer, while lm-eval compares
  whole outputs with whole solutions. The four solved examples are our own.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from dlm.eval.extract import last_boxed
from dlm.eval.presets import published
from dlm.eval.source import Record, hub_records, read_records, unique
from dlm.eval.stated import stated
from dlm.eval.task import Metric, Problem, Source, Task, Template
from dlm.eval.verify import verifier

HUB = "HuggingFaceH4/MATH-500"
LONGEST = 1000  # characters that are parsed as mathematics

_SPACES = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![A-Za-z])|\s|~|\$|\\\$")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BASE = re.compile(r"[0-9A-Z]+_\{?([0-9]+)\}?")
_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\{([^{}]*)\}")


def problems(records: Iterable[Record]) -> list[Problem]:
    """Records as problems.

    Raises:
        ValueError: a record lacks a text, or repeats an id.
    """
    found = []
    for record in unique(records, "unique_id"):
        answer = record.text("answer")
        if not answer.strip():
            raise record.refuse("'answer' must not be empty", answer)
        fields = {"problem": record.text("problem"), "solution": record.text("solution")}
        found.append(Problem(record.text("unique_id"), fields, answer))
    return found


def read(path: Path) -> list[Problem]:
    """Read the problems of a file in the published format."""
    return problems(read_records(path))


SOLVED = (
    (
        "A rectangle is 3 times as long as it is wide, and its perimeter is 40. Find its area.",
        r"Let the width be $w$. Then $2(w + 3w) = 40$, so $w = 5$, and the area is "
        r"$5 \cdot 15 = \boxed{75}$.",
        "75",
    ),
    (
        "A bag holds 2 red and 3 blue marbles. Two are drawn at once. What is the probability that "
        "both are blue?",
        r"There are $\binom{5}{2} = 10$ pairs, and $\binom{3}{2} = 3$ of them are blue. The "
        r"probability is $\boxed{\frac{3}{10}}$.",
        r"\frac{3}{10}",
    ),
    (
        "For which real $x$ is $x^2 - 5x + 6 < 0$?",
        r"It is $(x - 2)(x - 3)$, negative between its zeros, so $x$ is in $\boxed{(2,3)}$.",
        "(2,3)",
    ),
    (
        "What is the remainder when $7^{20}$ is divided by $10$?",
        r"The last digits of powers of 7 go $7, 9, 3, 1$ and repeat. As 20 is a multiple of 4, the "
        r"remainder is $\boxed{1}$.",
        "1",
    ),
)


def examples(data: Path | None) -> list[Problem]:
    """Four solved problems of our own."""
    return [
        Problem(f"dlm/{n}", {"problem": problem, "solution": solution}, answer)
        for n, (problem, solution, answer) in enumerate(SOLVED)
    ]


def boxed(problem: Problem, output: str) -> str | None:
    r"""The content of the last `\boxed{}`."""
    return last_boxed(output)


def final(problem: Problem, output: str) -> str | None:
    r"""The last `\boxed{}`, else what the last line states."""
    inside = last_boxed(output)
    return stated(output) if inside is None else rf"\boxed{{{inside}}}"


def normalised(text: str) -> str:
    r"""An answer without spaces, `\left`, `\text{}`, a full stop and sizes of fractions."""
    text = _FRACTION.sub(r"\\frac", _WORDS.sub(r"\1", text))
    return _SPACES.sub("", text).rstrip(".")


def exact(problem: Problem, extracted: str) -> bool:
    """Whether an answer equals the reference as a string, ignoring typesetting."""
    return normalised(extracted) == normalised(problem.answer)


def other_base(one: str, other: str) -> bool:
    """Whether both are numbers in different written bases, which math_verify does not read."""
    found = [_BASE.fullmatch(normalised(each)) for each in (one, other)]
    return all(found) and len({match[1] for match in found if match}) > 1


def verified(problem: Problem, extracted: str) -> bool:
    """Whether an answer equals the reference mathematically; no if math-verify gives up."""
    inside = last_boxed(extracted)
    if exact(problem, extracted if inside is None else inside):
        return True
    if len(extracted) > LONGEST or other_base(problem.answer, inside or extracted):
        return False
    return verifier().same(rf"\boxed{{{problem.answer}}}", extracted) or False


CHAT = "{problem}\n\nReason step by step and put the final answer into \\boxed{{}}."

TASK = Task(
    name="math500",
    # What earlier versions did wrong. 4: thoughts were read. 3: the first number of a bare
    # expression was the answer. 2: bases of numbers were ignored. 1: an empty box hid the answer
    # before it
    version=5,
    summary="Competition mathematics.",
    paper="Hendrycks et al. 2021, arXiv:2103.03874; Lightman et al. 2023, arXiv:2305.20050",
    licence="MIT",
    requires=("math_verify",),
    source=Source(
        read=read,
        hub=lambda: problems(hub_records(HUB, None, "test")),
        examples=examples,
        where=f"{HUB}, split test",
    ),
    templates=(
        Template("chat_boxed", CHAT, chat=True),
        Template(
            "base_4shot",
            "Problem:\n{problem}\n\nSolution:",
            shots=4,
            target=" {solution}",
            until=("Problem:",),
        ),
    ),
    metrics=(
        Metric("verified", final, verified, spell=normalised),
        Metric("exact", boxed, exact),
    ),
    presets=published("math500"),
)
