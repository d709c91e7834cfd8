r"""MBPP, sanitized: small Python functions from one sentence and some asserts.

Austin et al. 2021, "Program Synthesis with Large Language Models", arXiv:2108.07732. There are 427
problems. Task ids 2, 3 and 4 are the solved examples of few-shot templates: no template scores
them, so that all score the same 424.

    {"task_id": 900, "prompt": "Write a function to double a number.",
     "code": "def twice(x):\n  return 2 * x", "test_imports": [], "test_list": ["assert ..."]}

Checked against the original and lm-eval 0.4.13, tasks/mbpp/mbpp.yaml:
- Prompts show the first three asserts, and all of them are run, after `test_imports`.
- `[BEGIN]` and `[DONE]` enclose code, and task ids 2, 3 and 4 are the examples.
- All 427 reference solutions pass.
- Different from lm-eval: it scores the 500 test problems of the full set (257 of them are in this
  one). The wording of the prompt is our own. Fenced code is read. Tests that rely on an import of
  the reference (596, `sys`) import it themselves.
"""

import ast
import builtins
import re
from collections.abc import Iterable
from pathlib import Path

from dlm.eval.extract import bare_code, block_defining, first_block, parsed, whole_module
from dlm.eval.presets import published
from dlm.eval.source import Record, hub_records, read_records, unique
from dlm.eval.task import Check, Metric, Problem, Source, Task, Template

HUB = "google-research-datasets/mbpp"
SPLITS = ("prompt", "test", "validation", "train")
HELD_IN = frozenset({"2", "3", "4"})
SHOWN = 3  # asserts shown in a prompt
BEGIN, DONE = "[BEGIN]", "[DONE]"


def problems(records: Iterable[Record]) -> list[Problem]:
    """Records as problems, sorted by task id.

    Raises:
        ValueError: a record lacks a value, repeats an id, or has tests that are not Python or call
            nothing.
    """
    found = [_problem(each) for each in unique(records, "task_id")]
    return sorted(found, key=lambda each: int(each.id))


def _problem(record: Record) -> Problem:
    number, tests = record.get("task_id"), record.texts("test_list")
    if isinstance(number, bool) or not isinstance(number, int):
        raise record.refuse("'task_id' must be an int", number)
    imports = record.texts("test_imports")
    code = record.text("code")
    program, calls = parsed(code), parsed("\n".join([*imports, *tests]))
    if program is None or calls is None:
        raise record.refuse("'code' and 'test_list' must be Python", [code, *tests])
    names = called(calls, program)
    imports += imported(program, names)
    names = [name for name in names if name not in _imports(program)]
    if not names:
        raise record.refuse("'test_list' must call what 'code' defines", tests)
    fields = {"prompt": record.text("prompt"), "tests": "\n".join(tests[:SHOWN])}
    data = {"test_imports": imports, "test_list": tests, "names": names}
    return Problem(str(number), fields, code, data)


def called(tests: ast.AST, code: ast.AST) -> list[str]:
    """Names that tests read and do not bind, without builtins that the solution does not define.

    Problem 126 calls a `sum` that the solution has to define.
    """
    read, bound = _names(tests)
    _, defined = _names(code)
    python = set(dir(builtins)) - defined
    return [name for name in read if name not in bound | python]


def imported(code: ast.AST, names: Iterable[str]) -> list[str]:
    """Imports of the reference that tests rely on: those of problem 596 use its `sys`."""
    statements = _imports(code)
    return list(dict.fromkeys(statements[name] for name in names if name in statements))


def _imports(code: ast.AST) -> dict[str, str]:
    """Import statements by the names that they bind."""
    return {
        (alias.asname or alias.name).partition(".")[0]: ast.unparse(node)
        for node in ast.walk(code)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _names(tree: ast.AST) -> tuple[dict[str, None], set[str]]:
    """The names that a program reads, in order, and those that it binds."""
    read, bound = dict[str, None](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read[node.id] = None
        elif isinstance(node, ast.Name):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
    return read, bound


def read(path: Path) -> list[Problem]:
    """Read the problems of a file in the published format."""
    return problems(read_records(path))


def hub() -> list[Problem]:
    """All splits on the hub together, which are the published file."""
    rows = [hub_records(HUB, "sanitized", split) for split in SPLITS]
    return problems(record for split in rows for record in split)


def examples(data: Path | None) -> list[Problem]:
    """The problems that include the solved examples."""
    return hub() if data is None else read(data)


def program(problem: Problem, output: str) -> str | None:
    """The code of an output: fenced, else all of it if it is Python, else the code within prose."""
    text = output.partition(DONE)[0].rpartition(BEGIN)[2]
    names = tuple(problem.data["names"])
    found = block_defining(text, names)
    if found is None and _speaks_of(names, text):
        found = whole_module(text)
    if found is None:
        found = bare_code(text, names)
    block = first_block(text) if found is None else None
    if block is not None and _speaks_of(names, block) and parsed(block) is not None:
        found = block
    return found


def _speaks_of(names: tuple[str, ...], text: str) -> bool:
    """Whether one of the names occurs in a text."""
    return any(re.search(rf"\b{re.escape(name)}\b", text) for name in names)


def check(problem: Problem, code: str) -> Check:
    """The tests of the data set."""
    tests = "\n".join([*problem.data["test_imports"], *problem.data["test_list"]]) + "\n"
    return Check(code, tests, tuple(problem.data["names"]))


CHAT = "{prompt} Answer with the Python code in one ```python block. It must pass:\n\n{tests}"
BASE = "Task: {prompt} The Python code must pass:\n\n{tests}\n" + BEGIN + "\n"

TASK = Task(
    name="mbpp",
    # What earlier versions did wrong. 3: code in a thought was run. 2: a block was used without
    # what another block binds by an assignment. 1: a word before code counted as code, and other
    # checks made checks time out.
    version=4,
    summary="Write small Python functions; outputs are executed.",
    paper="Austin et al. 2021, arXiv:2108.07732",
    licence="CC-BY-4.0",
    source=Source(
        read=read,
        hub=hub,
        examples=examples,
        where=f"{HUB}, config sanitized, all splits",
        held_in=HELD_IN,
    ),
    templates=(
        Template("chat", CHAT, chat=True),
        Template("chat_3shot", CHAT, chat=True, shots=3, target="```python\n{answer}\n```"),
        Template("base_3shot", BASE, shots=3, target="{answer}\n" + DONE, until=(DONE,)),
    ),
    metrics=(Metric("pass@1", program, check=check),),
    presets=published("mbpp"),
)
