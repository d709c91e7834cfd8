"""What the metrics read in an output, and what they make of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dlm.eval import gsm8k, humaneval, humaneval_infill, math500, mbpp
from dlm.eval.score import NOTHING, Verdict, score
from dlm.eval.source import Record
from dlm.eval.task import Check, Metric, Problem, Task, Template
from dlm.eval.tasks import TASKS
from dlm.eval.verify import Verifier, verifier

QUESTION = Problem("0", {"question": "How many pens?"}, "3*4=12 and 6 more.\n#### 18")
PROMPT = (
    "import math\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def twice(x: float) -> float:\n    """Double x.\n    >>> twice(2)\n    4\n    """\n'
)
FUNCTION = humaneval.problems(
    [
        Record(
            "here",
            {
                "task_id": "X/0", "entry_point": "twice", "prompt": PROMPT,
                "canonical_solution": "    return 2 * x\n",
                "test": "def check(f):\n    assert f(2) == 4\n    assert half(2) == 1\n",
            },
        )
    ]
)[0]  # fmt: skip
SENTENCE = mbpp.problems(
    [
        Record(
            "here",
            {
                "task_id": 900, "prompt": "Double a number.",
                "code": "def twice(x):\n  return 2 * x", "test_imports": ["import math"],
                "test_list": [f"assert math.isclose(twice({n}), {2 * n})" for n in range(5)],
            },
        )
    ]
)[0]  # fmt: skip
FORMULA = Problem("a/0", {"problem": "$2x=1$", "solution": "..."}, r"\frac{1}{2}")


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[None]:
    """Ends the process that compares mathematics."""
    yield
    verifier().close()


@dataclass(frozen=True, slots=True)
class Ran:
    passed: bool
    kind: str = "failed"
    detail: str = ""


def here(checks: list[Check]) -> list[Ran]:
    """Runs programs of this file; tests see the names of a check alone."""
    return [Ran(passes(check)) for check in checks]


def passes(check: Check) -> bool:
    space: dict[str, Any] = {}
    try:
        exec(check.solution, space)
        exec(check.tests, {name: space[name] for name in check.names})
    except Exception:
        return False
    return True


def refuse(checks: list[Check]) -> list[Ran]:
    raise AssertionError("nothing may run")


def verdict(task: Task, problem: Problem, output: str) -> Verdict:
    return score(task, [problem], [output], here)[0]


@pytest.mark.parametrize("worth", [2, -0.5, float("nan"), float("inf")])
def test_a_score_that_is_none_is_told_as_it_is_made(worth: float) -> None:
    own = Metric("own", lambda problem, output: output, lambda problem, extracted: worth)
    task = replace(TASKS["gsm8k"], metrics=(own,))
    said = rf"metric 'own' must give a score in \[0, 1\], got {float(worth)} for problem '0'"
    with pytest.raises(ValueError, match=said):
        verdict(task, QUESTION, "18")


# GSM8K.


@pytest.mark.parametrize(
    ("output", "flexible", "strict", "boxed"),
    [
        ("It is 18.\n#### 18", 1, 1, 1),
        ("It is 18.", 1, 0, 1),
        ("#### 18\nQuestion 2", 0, 1, 0),
        ("#### $18", 1, 0, 1),
        ("$1,8", 1, 0, 1),
        (r"So \boxed{18}, of which 3 are red.", 0, 0, 1),
        (r"$\boxed{18}$.", 0, 0, 1),
        (r"\boxed{\$18\text{ pens}}", 1, 0, 1),
        (r"\boxed{18\text{ m}^2}", 0, 0, 1),
        (r"\boxed{17} no, 18", 1, 0, 0),
        (r"\boxed{} 18", 1, 0, 1),
        ("-18", 0, 0, 0),
        ("18.0", 0, 0, 1),
        ("18.00 dollars", 0, 0, 1),
        (r"\boxed{18.} of 30 \boxed{}", 0, 0, 1),
        ("18.01", 0, 0, 0),
        ("18...", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_gsm8k(output: str, flexible: int, strict: int, boxed: int) -> None:
    found = verdict(TASKS["gsm8k"], QUESTION, output)
    assert found.scores == {"flexible": flexible, "strict": strict, "boxed_or_flexible": boxed}
    assert found.score == flexible
    assert found.detail == ""


@pytest.mark.parametrize("boxed", [r"1{,}234", r"1,234", r"1\,234", r"1\!,234", r"\$1,234"])
def test_gsm8k_reads_latex_numbers(boxed: str) -> None:
    problem = Problem("0", {}, "#### 1,234")
    number = gsm8k.boxed_or_flexible(problem, rf"\boxed{{{boxed}}}")
    assert number is not None
    assert gsm8k.is_correct(problem, number)
    assert gsm8k.is_equal(problem, f"{number}.00")


def test_gsm8k_references_may_end_in_a_newline() -> None:
    record = Record("here", {"question": "?", "answer": "6 more.\n#### 18\n"})
    (problem,) = gsm8k.problems([record])
    assert set(verdict(TASKS["gsm8k"], problem, "#### 18").scores.values()) == {1}


def test_gsm8k_prompts() -> None:
    task = TASKS["gsm8k"]
    solved = [Problem(str(n), {"question": f"Q{n}"}, f"A{n}\n#### {n}") for n in range(4)]
    rendered = {each.name: each for each in task.templates if isinstance(each, Template)}
    assert rendered["base_4shot"].render(QUESTION, solved) == (
        "Question: Q0\nAnswer: A0\n#### 0\n\nQuestion: Q1\nAnswer: A1\n#### 1\n\n"
        "Question: Q2\nAnswer: A2\n#### 2\n\nQuestion: Q3\nAnswer: A3\n#### 3\n\n"
        "Question: How many pens?\nAnswer:"
    )
    assert task.template("base_0shot").cut("18\n\nQuestion: x") == "18\n\n"
    chat = rendered["chat_4shot"].render(QUESTION, solved)
    assert [each["role"] for each in chat] == ["user", "assistant"] * 4 + ["user"]  # type: ignore[index]
    boxed = rendered["chat_boxed"].render(QUESTION)
    assert boxed[0]["content"].endswith(r"\boxed{}.")  # type: ignore[index]


# Code.

BODY = "    return 2 * x"
WHOLE = f"def twice(x):\n{BODY}"
BEFORE = PROMPT.partition("def twice")[0].strip("\n")
SUM = "def twice(x):\n    return sum(PAIR) * x"
MODULES = (
    f"import sys\nsys.setrecursionlimit(sys.getrecursionlimit())\nPAIR: list[int] = [2]\n{SUM}",
    f"ONE, PAIR = 1, (1, 1)\n{SUM}",
    f"PAIR = [\n1,\n1,\n]\n{SUM}",
    f"PAIR = {{}}\nPAIR[2] = 0\n{SUM}",
    'def twice(x):\n    """Doubles.\n\nIn the first column.\n    """\n    return 2 * x',
    "def twice(x):\n    return helped(x)\n\nassert True\n\ndef helped(x):\n    return 2 * x",
)

BOUND = (
    "def f(x):\n    return 2 * x\ntwice = f",
    "twice = lambda x: 2 * x",
    "if math:\n    def twice(x):\n        return 2 * x\nelse:\n    twice = None",
    "try:\n    from nowhere import twice\nexcept ImportError:\n    def twice(x): return 2 * x",
    "from functools import partial\ntwice: object = partial(lambda a, b: a * b, 2)",
)
"""What gives the function its name otherwise than in the first column."""


@pytest.mark.parametrize(
    ("output", "program"),
    [
        (BODY, PROMPT + BODY),
        (f"\n{BODY}\n", f"{PROMPT}\n{BODY}\n"),
        (f"{BODY}\n```\nNice.", f"{PROMPT}{BODY}\n```\nNice."),  # as the original: it fails
        (f"```python\n{WHOLE}\n```", f"{BEFORE}\n{WHOLE}\n"),
        (f"Here:\n```\n{WHOLE}\n```\nDone.", f"{BEFORE}\n{WHOLE}\n"),
        (f"Here:\n```python\n{WHOLE}", f"{BEFORE}\n{WHOLE}\n"),
        (f"```python\n{PROMPT}{BODY}\n```", f"{BEFORE}\n{PROMPT}{BODY}\n"),
        (PROMPT + BODY, f"{BEFORE}\n{(PROMPT + BODY).strip()}\n"),
        (f"```sh\npip\n```\n```python\n{WHOLE}\n```\n```python\ntwice(1)\n```",
         f"{BEFORE}\n{WHOLE}\n"),
        (f"```python\n{PROMPT}```\n```python\n{WHOLE}\n```", f"{BEFORE}\n{WHOLE}\n"),
        (f"```python\n{BODY}\n```", f"{PROMPT}{BODY}"),
        ("```python\nreturn 2 * x\n```", f"{PROMPT}{BODY}"),
        ("return 2 * x", f"{PROMPT}{BODY}"),
        ("y = 2\n    return y * x", f"{PROMPT}    y = 2\n    return y * x"),
        (f"Sure!\n\n{WHOLE}\n\nThat is all.", f"{BEFORE}\n{WHOLE}\n"),
        (f"  ```python\n  def twice(x):\n  {BODY}\n  ```", f"{BEFORE}\n{WHOLE}\n"),
        ("    def twice(x):\n        return 2 * x", f"{BEFORE}\n{WHOLE}\n"),
        *((text, f"{BEFORE}\n{text}\n") for text in MODULES),
        (f"Sure\n\n{WHOLE}", f"{BEFORE}\n{WHOLE}\n"),
        (f"{WHOLE}\n\nprint(twice(x))\nassert twice(1) == 3", f"{BEFORE}\n{WHOLE}\n"),
        (f"{WHOLE}\nreturn False", f"{BEFORE}\n{WHOLE}\n"),
        *((f"```python\n{text}\n```", f"{BEFORE}\n{text}\n") for text in BOUND),
        *((text, f"{BEFORE}\n{text}\n") for text in BOUND),
    ],
)  # fmt: skip
def test_humaneval_programs(output: str, program: str) -> None:
    found = humaneval.program(FUNCTION, output)
    assert found is not None
    assert found.split() == program.split()
    if "Nice" not in output:
        assert verdict(TASKS["humaneval"], FUNCTION, output).score == 1


@pytest.mark.parametrize(
    "output", ["", "\n ", "I cannot do that.", "```python\n```", "```\nwhy?\n```"]
)
def test_humaneval_finds_no_code(output: str) -> None:
    found = score(TASKS["humaneval"], [FUNCTION], [output], refuse)[0]
    assert (found.score, found.detail) == (0, NOTHING)
    assert found.extracted == {"pass@1": None}


def test_humaneval_checks_what_the_prompt_defines() -> None:
    check = humaneval.check(FUNCTION, "x")
    assert check.names == ("half", "twice")
    assert check.tests.endswith("\ncheck(twice)\n")
    future = f"```python\nfrom __future__ import annotations\n{WHOLE}\n```"
    assert verdict(TASKS["humaneval"], FUNCTION, future).score == 1
    cut = TASKS["humaneval"].template("completion").cut(f"{BODY}\n\ndef check():\n  pass")
    assert cut == f"{BODY}\n"


@pytest.mark.parametrize(
    "output",
    [
        WHOLE, f"{WHOLE}\n[DONE]\n\nTask: x", f"[BEGIN]\n{WHOLE}\n[DONE]",
        f"```python\n{WHOLE}\n```",
        f"Here it is:\n{WHOLE}\nI hope it helps.", f"Sure\n\n{WHOLE}", *MODULES,
        f"```python\nx\n```\n```python\n{WHOLE}\n```",
        "twice = lambda x: 2 * x", "```python\ntwice = lambda x: 2 * x\n```", f"```python\n{WHOLE}",
        f"    {WHOLE}".replace("\n", "\n    "), f"import os\n{WHOLE}\nprint(twice(2))",
    ],
)  # fmt: skip
def test_mbpp_programs(output: str) -> None:
    assert verdict(TASKS["mbpp"], SENTENCE, output).score == 1


@pytest.mark.parametrize("output", ["", "Yes", "thrice = 1", "Use twice (it doubles).", "[DONE] x"])
def test_mbpp_finds_no_code(output: str) -> None:
    found = score(TASKS["mbpp"], [SENTENCE], [output], refuse)[0]
    assert (found.score, found.detail) == (0, NOTHING)


def test_mbpp_shows_three_asserts_and_runs_all() -> None:
    assert SENTENCE.fields["tests"].count("assert") == 3
    check = mbpp.check(SENTENCE, WHOLE)
    assert check.names == ("twice",)
    assert check.tests.startswith("import math\nassert")
    assert check.tests.count("assert") == 5
    nearly = "def twice(x):\n    return 2 * x if x < 4 else 0"
    assert verdict(TASKS["mbpp"], SENTENCE, nearly).score == 0


# Mathematics.


@pytest.mark.parametrize(
    ("answer", "output", "verified", "exact"),
    [
        (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", 1, 1),
        (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}.}", 1, 1),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1, 0),
        (r"\frac{1}{2}", r"\boxed{\frac12}", 1, 0),
        (r"\frac{1}{2}", r"So it is $\frac{1}{2}$.", 1, 0),
        (r"\frac{1}{2}", "1/2 is close.\nThe answer is 3", 0, 0),
        (r"\frac{1}{2}", r"\boxed{2}", 0, 0),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}, so \boxed{}", 1, 1),
        (r"\left(3, \frac{\pi}{2}\right)", r"\boxed{(3,\frac{\pi}{2})}", 1, 1),
        (r"\text{Evelyn}", r"\boxed{Evelyn}", 1, 1),
        (r"\text{Evelyn}", r"\boxed{\text{Bob}}", 0, 0),
        ("9", r"\boxed{9", 0, 0),
        ("9", r"\boxed{3^2}", 1, 0),
        ("9", rf"\boxed{{{'(' * 3000}}}", 0, 0),
        ("9", "\\boxed{\ud800}", 0, 0),
        ("x=5", r"\boxed{5}", 1, 0),
        ("4210_{5}", r"\boxed{4210_5}", 1, 0),
        ("4210_{5}", r"\boxed{4210_7}", 0, 0),
        ("4210_{5}", r"\boxed{4211_5}", 0, 0),
        ("52_8", r"\boxed{52}", 1, 0),  # math-verify reads no base
        ("3, 5, 7", r"\boxed{7,3,5}", 1, 0),  # math-verify reads a set
        ("3, 5, 7", r"\boxed{7,3,6}", 0, 0),
        ("9", "", 0, 0),
    ],
)
def test_math500(answer: str, output: str, verified: int, exact: int) -> None:
    problem = Problem("a/0", {"problem": "?", "solution": ""}, answer)
    found = verdict(TASKS["math500"], problem, output)
    assert found.scores == {"verified": verified, "exact": exact}


def test_mathematics_that_never_ends_is_given_up() -> None:
    own = Verifier(seconds=0.5)
    assert own.same(r"\boxed{9}", r"\boxed{9^{9^{9^{9}}}}") is None
    assert own.same(r"\boxed{9}", r"\boxed{3^2}") is True
    assert own._process is not None
    own._process.kill()
    own._process.wait()
    assert own.same(r"\boxed{9}", r"\boxed{8}") is False
    own.close()
    own.close()


def test_a_broken_math_verify_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="math-verify cannot be used"):
        Verifier().same("1", "2")


def test_long_answers_are_not_read_as_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Recorder:
        def same(self, gold: str, answer: str) -> bool:
            asked.append(answer)
            return True

    monkeypatch.setattr(math500, "verifier", Recorder)
    assert math500.verified(FORMULA, "1" * 1000)
    assert not math500.verified(FORMULA, "1" * 1001)
    assert asked == ["1" * 1000]


def test_mathematics_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"'):
        Verifier().same("1", "2")


def test_mathematics_works_in_a_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: math500.verified(FORMULA, rf"\boxed{{{n}/8}}"), range(8)))
    assert found == [n == 4 for n in range(8)]


def test_no_task_reads_thoughts_but_those_that_fill_blanks() -> None:
    wrong = "```python\ndef twice(x):\n    return 3 * x\n```"
    outputs = {
        "gsm8k": (QUESTION, "18", "#### 17"), "math500": (FORMULA, "1/2", r"\boxed{1}"),
        "humaneval": (FUNCTION, f"```python\n{WHOLE}\n```", wrong),
        "mbpp": (SENTENCE, WHOLE, wrong),
    }  # fmt: skip
    for name, (problem, answer, other) in outputs.items():
        output = f"<think>\n{other}\n</think>\n\n{answer}"
        assert verdict(TASKS[name], problem, output).score == 1
        assert verdict(TASKS[name], problem, output.removeprefix("<think>\n")).score == 1
        assert verdict(TASKS[name], problem, f"<think>{answer}</think>{other}").score == 0
    whole = next(humaneval_infill.cut(FUNCTION, "X", humaneval_infill.single))
    text = "    return '<think></think>' and 2 * x\n"
    assert verdict(TASKS["humaneval_infill"], whole, text).extracted["exact match"] == text


def test_code_is_run_in_one_call() -> None:
    calls: list[list[Check]] = []

    def run_all(checks: list[Check]) -> list[Ran]:
        calls.append(checks)
        return [Ran(n == 1, "timeout", "3 s") for n in range(len(checks))]

    found = score(TASKS["humaneval"], [FUNCTION] * 4, [BODY, "no, no.", WHOLE, ""], run_all)
    assert [len(checks) for checks in calls] == [2]
    assert [each.score for each in found] == [0, 0, 1, 0]
    assert [each.detail for each in found] == ["timeout: 3 s", NOTHING, "timeout: 3 s", NOTHING]
    with pytest.raises(ValueError, match="run_all must give 1 outcomes, got 0"):
        score(TASKS["humaneval"], [FUNCTION], [BODY], lambda checks: [])
    with pytest.raises(ValueError, match="zip"):
        score(TASKS["humaneval"], [FUNCTION], [], refuse)
