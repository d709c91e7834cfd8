"""Programs that try to pass without an answer: by forged words, equality, exits, messages."""

from collections.abc import Callable

import pytest

from dlm.eval.sandbox import Outcome

Run = Callable[..., Outcome]
PASSED = {"passed"}  # the tests hold only if the program could do nothing
ANY = {"failed", "error", "timed out", "out of memory", "killed", "unreadable"}
Attacks = dict[str, tuple[str, str, set[str]]]

# A solution, its tests, and how that may end.
ATTACKS: Attacks = {
    "exit at load": ("import os; os._exit(0)", "assert f(1) == 2", {"killed"}),
    "exit in a call": ("import os\ndef f(x): os._exit(0)", "assert f(1) == 2", {"killed"}),
    "sys.exit at load": ("import sys; sys.exit(0)", "assert f(1) == 2", {"error"}),
    "sys.exit in a call": ("import sys\ndef f(x): sys.exit(0)", "assert f(1) == 2", {"error"}),
    "KeyboardInterrupt": ("def f(x): raise KeyboardInterrupt", "assert f(1) == 2", {"error"}),
    "StopIteration": ("def f(x): raise StopIteration", "assert f(1) == 2", {"error"}),
    "always equal": (
        """
        class Yes:
            def __eq__(self, other): return True
            __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __eq__
            def __hash__(self): return hash(2)
            def __bool__(self): return True
            def __sub__(self, other): return self
            def __abs__(self): return self
        def f(x): return Yes()
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "an int that is always equal": (
        """
        class Yes(int):
            def __eq__(self, other): return True
            def __hash__(self): return 2
        def f(x): return Yes(3)
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "a list that is always equal": (
        """
        class Yes(list):
            def __eq__(self, other): return True
        def f(x): return Yes([1])
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "builtins replaced": (
        """
        import builtins
        builtins.AssertionError = type("Quiet", (BaseException,), {})
        for name in "compile exec print len all any sorted abs isinstance".split():
            setattr(builtins, name, lambda *a, **k: True)
        def f(x): return 3
        """,
        "assert f(1) == 2",
        ANY,
    ),
    "checkers redefined": (
        """
        def check(candidate): return True
        def abs(x): return 0
        def all(x): return True
        def isinstance(a, b): return True
        def f(x): return 3
        """,
        "def check(c):\n    assert all([abs(c(1) - 2) < 1])\ncheck(f)",
        {"failed"},
    ),
    "the link replaced": (
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith("dlm"):
                for each in list(vars(module)):
                    if callable(vars(module)[each]):
                        setattr(module, each, lambda *a, **k: b"")
        def f(x): return 2
        """,
        "assert f(1) == 2",
        ANY,
    ),
    "more names than asked for": (
        """
        import gc
        def lie(x, *more): return 0
        for each in gc.get_objects():
            if type(each).__name__ == "Link":
                names = "abs AssertionError check __builtins__".split()
                each.exports[1] = lambda asked: {
                    name: ("value", f if name == "f" else lie) for name in [*asked, *names]
                }
        def f(x): return 3
        """,
        "assert abs(f(1) - 2) < 1",
        {"failed"},
    ),
    "files of the judge": (
        """
        import os
        def f():
            found = []
            for name in os.listdir("/proc/self/fd"):
                try: found.append(os.readlink("/proc/self/fd/" + name).partition(":")[0])
                except OSError: pass
            return sorted(found)
        """,
        "assert f() == ['/dev/null'] * 3 + ['pipe'] * 2, f()",
        PASSED,
    ),
    "atexit and a trace": (
        """
        import atexit, sys, os
        atexit.register(lambda: os.write(1, b"passed"))
        sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)
        sys.excepthook = lambda *a: os._exit(0)
        def f(x): return 3
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "words of success": (
        """
        import os, sys
        def f(x):
            for text in ("ready", "passed: ", "0" * 32 + " passed: "):
                print(text); print(text, file=sys.stderr); os.write(1, text.encode() + b"\\n")
            return 3
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "words of success to every process": (
        """
        import glob
        def f(x):
            for path in glob.glob("/proc/*/fd/*"):
                if "self" in path or f"/{__import__('os').getpid()}/" in path: continue
                try: open(path, "wb").write(b"0" * 32 + b" passed: \\n")
                except OSError: pass
            return 3
        """,
        "assert f(1) == 2",
        {"failed"},
    ),
    "garbage on every channel": (
        """
        import os
        for fd in range(3, 128):
            try: os.write(fd, b"\\xff" * 4096)
            except OSError: pass
        def f(x): return 2
        """,
        "assert f(1) == 2",
        {"unreadable"},
    ),
    "a message of 4 GiB": (
        """
        import os
        for fd in range(3, 128):
            try: os.write(fd, b"ffffffff")
            except OSError: pass
        def f(x): return 2
        """,
        "assert f(1) == 2",
        {"unreadable"},
    ),
    "a deep message": (
        """
        import os
        def f(x):
            body = b"l1:" * 500_000
            for fd in range(3, 128):
                try: os.write(fd, b"%08x" % len(body) + body)
                except OSError: pass
            return 2
        """,
        "assert f(1) == 2",
        {"unreadable"},
    ),
    "an endless message": (
        """
        import os
        def f(x):
            while True:
                for fd in range(3, 128):
                    try: os.write(fd, b"00000008u1:s1:a:" * 4096)
                    except OSError: pass
        """,
        "assert f(1) == 2",
        {"unreadable"},
    ),
    "endless calls back": (
        """
        def f(x):
            while True: x(1)
        """,
        "assert f(lambda x: x) == 2",
        {"timed out"},
    ),
    "an answer of a gigabyte": (
        "def f(x): return 'x' * 10**8",
        "assert f(1) == 2",
        {"error", "out of memory"},
    ),
    "an answer without end": (
        "import itertools\ndef f(x): return itertools.count()",
        "assert f(1) == 2",
        {"error"},
    ),
    "a cycle": (
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
        "assert f(1) == 2",
        {"error"},
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(attacked: Run, name: str) -> None:
    solution, tests, kinds = ATTACKS[name]
    outcome = attacked(solution, tests)
    assert outcome.kind in kinds, outcome
    assert outcome.passed == (outcome.kind == "passed")
    assert len(outcome.detail) <= 300
