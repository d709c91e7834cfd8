"""Answers to MATH-500 in no box: what a line of prose states, and what it leaves open."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.eval import math500
from dlm.eval.stated import stated
from dlm.eval.task import Problem
from dlm.eval.verify import verifier

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "math500.jsonl"
FORMS: list[Callable[[str], str]] = [
    lambda answer: f"The answer is ${answer}$.",
    lambda answer: f"The answer is {answer}.",
    lambda answer: f"Final Answer: The final answer is ${answer}$. I hope it is correct.",
    lambda answer: f"**Answer:** {answer}",
]
OTHERS: list[Callable[[str], str]] = [
    lambda answer: f"{answer}x",
    lambda answer: f"{answer} x",
    lambda answer: rf"{answer}\sqrt{{2}}",
    lambda answer: rf"{answer}\pi",
    lambda answer: f"{answer} or 77",
    lambda answer: f"{answer}:77",
    lambda answer: rf"2 \times {answer}",
]


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[None]:
    """Ends the process that compares mathematics."""
    yield
    verifier().close()


def right(answer: str, output: str) -> bool:
    problem = Problem("a/0", {"problem": "?", "solution": ""}, answer)
    found = math500.final(problem, output)
    return found is not None and math500.verified(problem, found)


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (r"3\sqrt{13}", r"The answer is 3\sqrt{13}."), ("3", "The answer is 3 feet."),
        ("3", "x = 3"), ("3", "Thus $1 + 2 = 3$."), ("3", "So there are $3$ such numbers."),
        ("3", "The answer is 3. This is because 1+2=3, or 2+1."), ("3", r"\boxed{} 3"),
        ("3", "It simplifies to 3."), ("7", "So we add 3 and 4 to get 7."), ("27", "**27**"),
        ("1,-2", "So $x=1$ or $x=-2$."),
        (r"\text{(C)}", "Answer: C"),
        (r"\frac34", "There is a 3/4 chance."),
        (r"15\mbox{ cm}^2", "The area is 15 cm^2."), (r"\$32,348", r"It is $\$32{,}348$."),
        ("y = 2x + 3", "The equation is $y = 2x + 3$."), ("x=5", "So it is 5."),
        (r"70 \sqrt{2}", r"It is $70\sqrt{2}$ feet away."), ("10", "Answer: 10 (see step 2)."),
        ("6", r"2 \times 3"),
    ],
)  # fmt: skip
def test_what_a_line_states(answer: str, output: str) -> None:
    assert right(answer, output)


@pytest.mark.parametrize(
    "output",
    [
        r"The answer is 3\sqrt{2}.", r"The answer is 3\pi.", "The answer is 3i.", r"2 \times 3",
        "The answer is 3 or 7.", "The answer is 7 or 3.", "It is $3$ or $7$.", 
        r"$x = 3 \text{ or } 7$", "x = 3 or x = 7", "3 apples or 7", "The answer is 3 x.",
        "The answer is 3:7.", "3 : 7", "from 3 to 7",
        r"\boxed{3", r"n \ge 3", "x^2 + 3", "cm^3", "x =",
        "3/4", "(3, 4)", "", "3\nThat is all.",
    ],
)  # fmt: skip
def test_a_part_of_what_a_line_states_is_no_answer(output: str) -> None:
    assert not right("3", output)


def test_what_has_signs_of_mathematics_is_left_as_it_is() -> None:
    for line in ("- $3$", "So it is $3$, and we are done.", r"The answer is \(5\)!", "It is $3x$."):
        assert stated(f"First.\n{line}\n") == line
    assert stated("The answer is 9^{9^{9^{9}}}.") == r"\boxed{9^{9^{9^{9}}}}"
    assert stated("The answer is 3 feet.") == "The answer is 3 feet."
    assert stated(" \n") is None


@pytest.mark.one_in(2)
@pytest.mark.parametrize("form", FORMS)
def test_all_references_are_read_without_a_box(form: Callable[[str], str]) -> None:
    if not DATA.exists():
        pytest.skip(f"no {DATA}")
    answers = [each.answer for each in math500.read(DATA)]
    assert not [answer for answer in answers if not right(answer, form(answer))]


@pytest.mark.parametrize("other", OTHERS)
def test_references_within_something_else_are_wrong(other: Callable[[str], str]) -> None:
    if not DATA.exists():
        pytest.skip(f"no {DATA}")
    answers = [each.answer for each in math500.read(DATA)[::10] if each.answer != "0"]
    outputs = [(answer, form(other(answer))) for answer in answers for form in FORMS[:2]]
    assert not [(answer, output) for answer, output in outputs if right(answer, output)]


@given(st.text() | st.text(alphabet="answer is:=3x$\\()[]{}*.or ,\n"))
def test_it_is_the_last_line_or_a_box_with_a_part_of_it(text: str) -> None:
    found, line = stated(text), text.rstrip().rpartition("\n")[2].strip()
    if found is not None and found != line:
        inside = found.removeprefix(r"\boxed{").removesuffix("}")
        assert inside in line


@pytest.mark.parametrize(
    "piece", ["answer is ", "answer  ", "$", "\\boxed {", "\\text{", "3 or ", "**"]
)
def test_time_is_linear_in_the_text(piece: str) -> None:
    began = time.process_time()
    stated(piece * (200_000 // len(piece)))
    assert time.process_time() - began < 5.0
