"""What the tests of a check see of a solution, and how a check ends."""

import textwrap
import threading
from typing import Any

import pytest

from dlm.eval.sandbox import Limits, Outcome, Sandbox
from dlm.eval.task import Check

LIMITS = Limits(cpu_seconds=2, wall_seconds=30, memory_bytes=2**28)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    """The best there is here; what is tested with it does not depend on which it is."""
    return Sandbox.find(unsafe=True, limits=LIMITS)


def ran(box: Sandbox, solution: str, tests: str, *names: str) -> Outcome:
    return box.run(Check(textwrap.dedent(solution), textwrap.dedent(tests), names))


# What tests see of a solution.


def test_tests_see_functions_and_data(box: Sandbox) -> None:
    solution = """
    TABLE = {"a": [1, 2]}
    def f(x, *, by=1):
        return x * by
    def g(items):
        items.append(f(3))
    """
    tests = """
    assert f(2, by=3) == 6 and TABLE == {"a": [1, 2]}
    held = [1]
    assert g(held) is None and held == [1, 3]
    """
    assert ran(box, solution, tests).passed
    assert ran(box, solution, tests, "f", "g", "TABLE").passed
    assert ran(box, solution, tests, "f", "g").kind == "failed"


def test_names_of_python_are_the_solutions_only_if_named(box: Sandbox) -> None:
    solution = "def sum(a, b):\n    return 7\n"
    assert ran(box, solution, "assert sum(1, 2) == 7", "sum").passed
    assert ran(box, solution, "assert sum([1, 2]) == 3").passed


def test_names_that_tests_define_are_theirs(box: Sandbox) -> None:
    solution = "def check(c):\n    return None\ndef f(x):\n    return x\n"
    tests = "def check(c):\n    assert c(1) == 2\ncheck(f)\n"
    assert ran(box, solution, tests).kind == "failed"
    assert ran(box, solution, tests, "f", "check").kind == "failed"


def test_modules_that_a_solution_imports_are_the_judges(box: Sandbox) -> None:
    tests = "assert math.floor(f(1.5)) == 1"
    assert ran(box, "import math\ndef f(x): return x", tests).passed
    fake = "import sys, types\nmath = types.ModuleType('math')\nmath.floor = lambda x: 1\n"
    assert not ran(box, fake + "def f(x): return 3.5", tests).passed
    assert not ran(box, "import cmath as math\ndef f(x): return 1", tests).passed


def test_classes_can_be_made_and_given_back(box: Sandbox) -> None:
    solution = """
    class Pair:
        def __init__(self, a, b): self.a, self.b = a, b
    def total(pairs): return sum(each.a * each.b for each in pairs)
    """
    assert ran(box, solution, "assert total([Pair(1, 2), Pair(a=3, b=4)]) == 14").passed


def test_functions_of_the_tests_can_be_called(box: Sandbox) -> None:
    solution = "def f(g, items): return sorted(items, key=g)"
    assert ran(box, solution, "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1]").passed


def test_errors_can_be_caught_by_name(box: Sandbox) -> None:
    solution = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x"
    tests = """
    try:
        f(-1)
    except ValueError as error:
        assert str(error) == "negative"
    else:
        assert False
    """
    assert ran(box, solution, tests).passed
    assert not ran(box, "def f(x): return x", tests).passed


def test_a_test_cannot_swallow_the_end_of_a_solution(box: Sandbox) -> None:
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass\n"
    assert ran(box, "import os\ndef f(x): os._exit(0)", tests).kind == "killed"


def test_a_solution_is_an_imported_module(box: Sandbox) -> None:
    solution = """
    from __future__ import annotations
    import dataclasses
    @dataclasses.dataclass
    class Point:
        x: int
    NAME = __name__
    if __name__ == "__main__":
        raise SystemExit
    def f(): return [Point(3).x, print("printed"), dataclasses.asdict(Point(4))]
    """
    assert ran(box, solution, "assert f() == [3, None, {'x': 4}] and NAME == 'solution'").passed


def test_a_solution_reads_nothing(box: Sandbox) -> None:
    assert ran(box, "def f(): return input()", "f()").detail.startswith("EOFError")


def test_the_same_program_scores_the_same(box: Sandbox) -> None:
    solution = "import random\ndef f(): return [random.random(), list(set('abcdefgh'))]"
    tests = "import random\nraise KeyError(f(), random.random())"
    assert len({ran(box, solution, tests).detail for _ in range(4)}) == 1


# How a check ends.


@pytest.mark.parametrize(
    ("solution", "tests", "kind", "detail"),
    [
        ("def f(): return 1", "assert f() == 1", "passed", ""),
        ("def f(): return 1", "x = 1\nassert f() == 2", "failed", "AssertionError: assert f() =="),
        ("def f(): return 1", "assert f() == 2, 'a\\nb'", "failed", "AssertionError: a b"),
        ("def f(): return None", "f() + 1", "failed", "TypeError: "),
        ("def g(): return 1", "assert f() == 1", "failed", "NameError: name 'f'"),
        ("def f(): return 1 / 0", "f()", "error", "ZeroDivisionError: division"),
        ("def f(): raise KeyError", "f()", "error", "KeyError: f()"),
        ("def f(: pass", "f()", "error", "SyntaxError: "),
        ("raise OSError('at load')", "f()", "error", "OSError: at load"),
        ("x = '\ud800'", "f()", "error", "UnicodeEncodeError"),
        ("x = '\0'", "f()", "error", ""),
        ("", "", "passed", ""),
        ("def f(): return '\\u20ac'", "raise KeyError(f())", "failed", "KeyError: '\\u20ac'"),
        ("def f(): return '\\x1b[2J'", "raise OSError(f())", "failed", "OSError: \\x1b[2J"),
    ],
)
def test_an_outcome_says_how_and_why(
    box: Sandbox, solution: str, tests: str, kind: str, detail: str
) -> None:
    outcome = ran(box, solution, tests)
    assert outcome.kind == kind
    assert outcome.passed == (kind == "passed")
    assert outcome.detail.startswith(detail)
    assert outcome.detail.isprintable()
    assert outcome.seconds > 0


def test_a_detail_has_an_end(box: Sandbox) -> None:
    outcome = ran(box, "def f(): return '\x07' * 10**6", "raise KeyError(f())")
    assert len(outcome.detail) <= 300
    assert ran(box, "def f(): return 16 ** 10**5", "raise KeyError(f())").kind == "failed"


def test_outcomes_come_in_order(box: Sandbox) -> None:
    checks = [Check(f"def f(): return {n}", "assert f() % 2 == 0") for n in range(10)]
    for workers in (1, 4):
        found = box.run_all(checks, workers=workers)
        assert [each.passed for each in found] == [True, False] * 5
    assert box.run_all([]) == []


def test_what_the_wall_clock_stops_beside_others_is_run_again_alone(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def busy(self: Sandbox, check: Check) -> Outcome:
        """Ends a check as a machine does whose other checks have the core."""
        asked.append(check.solution)
        if check.solution == "burns":
            return Outcome(False, "timed out", "2.0 s of CPU time", 1.0)
        alone = threading.current_thread() is threading.main_thread()
        if alone and check.solution == "works":
            return Outcome(True, "passed", "", 1.0)
        return Outcome(False, "timed out", "no time left", 1.0)

    monkeypatch.setattr(Sandbox, "run", busy)
    found = box.run_all([Check(each, "") for each in ("waits", "works", "burns")], workers=3)
    assert [each.kind for each in found] == ["timed out", "passed", "timed out"]
    assert asked[3:] == ["waits", "works"]
    asked.clear()
    assert not box.run_all([Check("waits", "")], workers=3)[0].passed
    assert asked == ["waits"]  # it had been alone


@pytest.mark.parametrize("workers", [0, 1.5, True])
def test_workers_are_checked(box: Sandbox, workers: Any) -> None:
    with pytest.raises(ValueError, match="workers"):
        box.run_all([], workers=workers)


def test_tests_that_are_no_python_are_no_outcome_that_passes(box: Sandbox) -> None:
    assert ran(box, "def f(): pass", "def (").kind == "error"
