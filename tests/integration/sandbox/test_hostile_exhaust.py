"""Programs that run for ever or use everything: each meets its limit, and nothing survives."""

from collections.abc import Callable

import pytest

from dlm.eval.sandbox import Outcome

Run = Callable[..., Outcome]
PASSED = {"passed"}  # the tests hold only if the program could do nothing
ANY = {"failed", "error", "timed out", "out of memory", "killed", "unreadable"}
Attacks = dict[str, tuple[str, str, set[str]]]

# A solution, its tests, and how that may end.
ATTACKS: Attacks = {
    "a loop": ("def f(x):\n    while True: pass", "assert f(1) == 2", {"timed out"}),
    "a loop at load": ("while True: pass", "assert f(1) == 2", {"timed out"}),
    "a loop in C": ("def f(x): return sum(range(10**12))", "assert f(1) == 2", {"timed out"}),
    "a regular expression": (
        "import re\ndef f(x): return re.match('(a+)+$', 'a' * 64 + 'b')",
        "assert f(1) == 2",
        {"timed out"},
    ),
    "signals ignored": (
        """
        import signal
        for each in signal.valid_signals():
            try: signal.signal(each, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(x):
            while True: pass
        """,
        "assert f(1) == 2",
        {"timed out"},
    ),
    "memory": (
        "def f(x):\n    a = []\n    while True: a.append('x' * 10**6)",
        "assert f(1) == 2",
        {"out of memory"},
    ),
    "memory at load": (
        "a = [0] * 10**9\ndef f(x): return 2",
        "assert f(1) == 2",
        {"out of memory"},
    ),
    "memory of many": (
        """
        import os, time
        def f(x):
            for _ in range(20):
                if os.fork() == 0:
                    block = bytearray(10**8)
                    time.sleep(1000)
            time.sleep(1000)
        """,
        "assert f(1) == 2",
        {"out of memory"},
    ),
    "recursion": ("def f(x): return f(x)", "assert f(1) == 2", {"error"}),
    "recursion without a limit": (
        """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __getattr__(self, name): return getattr(self, name + "x")
        def f(x): return repr(A().a)
        """,
        "assert f(1) == 2",
        ANY,
    ),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", "assert f(1) == 2", {"killed"}),
    "a bomb of threads": (
        """
        import threading, time
        def f(x):
            while True: threading.Thread(target=time.sleep, args=(1000,)).start()
        """,
        "assert f(1) == 2",
        ANY,
    ),
    "printing": (
        """
        import sys
        def f(x):
            while True: print("x" * 10**5); print("x" * 10**5, file=sys.stderr)
        """,
        "assert f(1) == 2",
        {"timed out"},
    ),
    "a full disk": (
        """
        def f():
            most = 0
            for folder in ("/tmp", "/dev/shm", "/", "/dev", "/usr", "/var/tmp"):
                written = 0
                try:
                    for number in range(64):
                        with open(f"{folder}/{number}", "wb") as out:
                            for _ in range(1024): written += out.write(b"x" * 1024)
                            out.flush()
                except OSError: pass
                most = max(most, written)
            return most
        """,
        "assert 2**20 < f() <= 2**24 + 2**17",
        PASSED,
    ),
    "a long file": (
        """
        def f():
            with open("/dev/shm/long", "wb", buffering=0) as out:
                try: out.truncate(2**40)
                except OSError: return "refused"
        """,
        "assert f() == 'refused'",
        PASSED,
    ),
    "thousands of files": (
        """
        def f():
            held = []
            try:
                while True: held.append(open("/dev/null"))
            except OSError: return len(held)
        """,
        "assert f() < 200",
        PASSED,
    ),
    "many processes": (
        """
        import os, time
        def f():
            try:
                for number in range(100):
                    if os.fork() == 0: time.sleep(1000)
            except OSError: return number
        """,
        "assert 10 < f() < 32",
        PASSED,
    ),
    "limits": (
        """
        import resource
        def f():
            names = "CPU AS FSIZE NPROC CORE".split()
            return [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names]
        """,
        f"assert f() == {[(1, 2), (2**28,) * 2, (2**24,) * 2, (32, 32), (0, 0)]}, f()",
        PASSED,
    ),
    "limits raised": (
        """
        import resource
        def f():
            raised = []
            for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
                try: resource.setrlimit(kind, (-1, -1)); raised.append(kind)
                except (OSError, ValueError): pass
            return raised
        """,
        "assert f() == []",
        PASSED,
    ),
}

# Those that only the wall clock ends.
WAITING: Attacks = {
    "sleep": ("import time\ndef f(x): time.sleep(1000)", "assert f(1) == 2", {"timed out"}),
    "everything stopped": (
        """
        import os, signal
        def f(x):
            os.kill(os.getppid(), signal.SIGSTOP); os.kill(os.getpid(), signal.SIGSTOP)
        """,
        "assert f(1) == 2",
        {"timed out"},
    ),
    "a fork bomb": (
        """
        import os
        def f(x):
            while True:
                try: os.fork()
                except OSError: pass
        """,
        "assert f(1) == 2",
        {"timed out", "killed", "unreadable"},
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


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", WAITING)
def test_the_wall_clock_ends_what_waits(attacked: Run, name: str) -> None:
    solution, tests, kinds = WAITING[name]
    assert attacked(solution, tests, wall_seconds=3).kind in kinds
