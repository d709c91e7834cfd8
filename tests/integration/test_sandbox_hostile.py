"""Programs that mean harm, in every protection that works here: none gains anything or survives."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dlm.eval.sandbox import Limits, Sandbox
from dlm.eval.task import Check

LIMITS = Limits(cpu_seconds=1, wall_seconds=30, memory_bytes=2**28, processes=32)
SHORT = replace(LIMITS, wall_seconds=3)
HEX = "[0-9a-f]{32}"  # what a nonce looks like
FAILURES = {"failed", "error", "timed out", "out of memory", "killed", "unreadable"}


# The best protection in the fast suite, all in the slow one; the same in every test process.
RUNGS = ["bubblewrap", "unshare"] if shutil.which("bwrap") else ["unshare", "bubblewrap"]
PARAMETERS = [RUNGS[0], pytest.param(RUNGS[1], marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def boxes() -> dict[str, Sandbox]:
    """What works on this machine."""
    return {each.rung: each for each in Sandbox.each(LIMITS)}


@pytest.fixture(params=PARAMETERS)
def box(request: pytest.FixtureRequest, boxes: dict[str, Sandbox]) -> Sandbox:
    if request.param not in boxes:
        pytest.skip(f"{request.param} does not work here")
    return boxes[request.param]


def processes(marker: str) -> list[str]:
    """Those of the machine that go by this name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names = (folder / "comm").read_text() + (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if marker in names:
            found.append(folder.name)
    return found


def gone(marker: str, seconds: float = 20) -> bool:
    """Whether all of them have ended by then."""
    until = time.monotonic() + seconds
    while processes(marker):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def marker() -> Iterator[str]:
    """A name for a test's processes and files, none of which may be left behind."""
    name = "m" + secrets.token_hex(5)
    yield name
    assert processes(name) == []
    left = [Path(each, name) for each in ("/", "/tmp", "/var/tmp", "/dev/shm", "/usr/bin", ".")]
    assert [each for each in [*left, Path.home() / name] if each.exists()] == []


def marked(marker: str, solution: str, **values: object) -> str:
    """A solution that goes by a name of its own, with values as globals."""
    lines = [f"MARKER = {marker!r}", "open('/proc/self/comm', 'w').write(MARKER)"]
    lines += [f"{name} = {value!r}" for name, value in values.items()]
    return "\n".join([*lines, textwrap.dedent(solution)])


@dataclass(frozen=True)
class Attack:
    """A program, what the tests ask of it, and how that may end."""

    solution: str
    tests: str = "assert f(1) == 2"
    kinds: frozenset[str] = frozenset(FAILURES)
    limits: Limits = LIMITS


def fails(solution: str, *kinds: str, limits: Limits = LIMITS) -> Attack:
    return Attack(solution, kinds=frozenset(kinds or FAILURES), limits=limits)


def contained(solution: str, tests: str) -> Attack:
    """It reports what it could do, and the tests hold only if that is nothing."""
    return Attack(solution, tests, frozenset({"passed"}))


ATTACKS = {
    # Passing without an answer.
    "exit at load": fails("import os; os._exit(0)", "killed"),
    "exit in a call": fails("import os\ndef f(x): os._exit(0)", "killed"),
    "sys.exit at load": fails("import sys; sys.exit(0)", "error"),
    "sys.exit in a call": fails("import sys\ndef f(x): sys.exit(0)", "error"),
    "KeyboardInterrupt": fails("def f(x): raise KeyboardInterrupt", "error"),
    "StopIteration": fails("def f(x): raise StopIteration", "error"),
    "always equal": fails(
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
        "failed",
    ),
    "an int that is always equal": fails(
        """
        class Yes(int):
            def __eq__(self, other): return True
            def __hash__(self): return 2
        def f(x): return Yes(3)
        """,
        "failed",
    ),
    "a list that is always equal": fails(
        """
        class Yes(list):
            def __eq__(self, other): return True
        def f(x): return Yes([1])
        """,
        "failed",
    ),
    "builtins replaced": fails(
        """
        import builtins
        builtins.AssertionError = type("Quiet", (BaseException,), {})
        for name in "compile exec print len all any sorted abs isinstance".split():
            setattr(builtins, name, lambda *a, **k: True)
        def f(x): return 3
        """,
    ),
    "checkers redefined": Attack(
        """
        def check(candidate): return True
        def abs(x): return 0
        def all(x): return True
        def isinstance(a, b): return True
        def f(x): return 3
        """,
        "def check(c):\n    assert all([abs(c(1) - 2) < 1])\ncheck(f)",
        frozenset({"failed"}),
    ),
    "the link replaced": fails(
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith("dlm"):
                for each in list(vars(module)):
                    if callable(vars(module)[each]):
                        setattr(module, each, lambda *a, **k: b"")
        def f(x): return 2
        """,
    ),
    "more names than asked for": Attack(
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
        frozenset({"failed"}),
    ),
    "files of the judge": contained(
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
    ),
    "atexit and a trace": fails(
        """
        import atexit, sys, os
        atexit.register(lambda: os.write(1, b"passed"))
        sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)
        sys.excepthook = lambda *a: os._exit(0)
        def f(x): return 3
        """,
        "failed",
    ),
    "words of success": fails(
        """
        import os, sys
        def f(x):
            for text in ("ready", "passed: ", "0" * 32 + " passed: "):
                print(text); print(text, file=sys.stderr); os.write(1, text.encode() + b"\\n")
            return 3
        """,
        "failed",
    ),
    "words of success to every process": fails(
        """
        import glob
        def f(x):
            for path in glob.glob("/proc/*/fd/*"):
                if "self" in path or f"/{__import__('os').getpid()}/" in path: continue
                try: open(path, "wb").write(b"0" * 32 + b" passed: \\n")
                except OSError: pass
            return 3
        """,
        "failed",
    ),
    "garbage on every channel": fails(
        """
        import os
        for fd in range(3, 128):
            try: os.write(fd, b"\\xff" * 4096)
            except OSError: pass
        def f(x): return 2
        """,
        "unreadable",
    ),
    "a message of 4 GiB": fails(
        """
        import os
        for fd in range(3, 128):
            try: os.write(fd, b"ffffffff")
            except OSError: pass
        def f(x): return 2
        """,
        "unreadable",
    ),
    "a deep message": fails(
        """
        import os
        def f(x):
            body = b"l1:" * 500_000
            for fd in range(3, 128):
                try: os.write(fd, b"%08x" % len(body) + body)
                except OSError: pass
            return 2
        """,
        "unreadable",
    ),
    "an endless message": fails(
        """
        import os
        def f(x):
            while True:
                for fd in range(3, 128):
                    try: os.write(fd, b"00000008u1:s1:a:" * 4096)
                    except OSError: pass
        """,
        "unreadable",
    ),
    "endless calls back": Attack(
        """
        def f(x):
            while True: x(1)
        """,
        "assert f(lambda x: x) == 2",
        frozenset({"timed out"}),
    ),
    "an answer of a gigabyte": fails("def f(x): return 'x' * 10**8", "error", "out of memory"),
    "an answer without end": fails("import itertools\ndef f(x): return itertools.count()", "error"),
    "a cycle": fails("def f(x):\n    a = []\n    a.append(a)\n    return a", "error"),
    # Running for ever, or using everything.
    "a loop": fails("def f(x):\n    while True: pass", "timed out"),
    "a loop at load": fails("while True: pass", "timed out"),
    "a loop in C": fails("def f(x): return sum(range(10**12))", "timed out"),
    "a regular expression": fails(
        "import re\ndef f(x): return re.match('(a+)+$', 'a' * 64 + 'b')", "timed out"
    ),
    "sleep": fails("import time\ndef f(x): time.sleep(1000)", "timed out", limits=SHORT),
    "signals ignored": fails(
        """
        import signal
        for each in signal.valid_signals():
            try: signal.signal(each, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(x):
            while True: pass
        """,
        "timed out",
    ),
    "everything stopped": fails(
        """
        import os, signal
        def f(x):
            os.kill(os.getppid(), signal.SIGSTOP); os.kill(os.getpid(), signal.SIGSTOP)
        """,
        "timed out",
        limits=SHORT,
    ),
    "memory": fails(
        "def f(x):\n    a = []\n    while True: a.append('x' * 10**6)", "out of memory"
    ),
    "memory at load": fails("a = [0] * 10**9\ndef f(x): return 2", "out of memory"),
    "memory of many": fails(
        """
        import os, time
        def f(x):
            for _ in range(20):
                if os.fork() == 0:
                    block = bytearray(10**8)
                    time.sleep(1000)
            time.sleep(1000)
        """,
        "out of memory",
    ),
    "recursion": fails("def f(x): return f(x)", "error"),
    "recursion without a limit": fails(
        """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __getattr__(self, name): return getattr(self, name + "x")
        def f(x): return repr(A().a)
        """,
    ),
    "a crash": fails("import ctypes\ndef f(x): ctypes.string_at(0)", "killed"),
    "a fork bomb": fails(
        """
        import os
        def f(x):
            while True:
                try: os.fork()
                except OSError: pass
        """,
        "timed out",
        "killed",
        "unreadable",
        limits=SHORT,
    ),
    "a bomb of threads": fails(
        """
        import threading, time
        def f(x):
            while True: threading.Thread(target=time.sleep, args=(1000,)).start()
        """,
    ),
    "printing": fails(
        """
        import sys
        def f(x):
            while True: print("x" * 10**5); print("x" * 10**5, file=sys.stderr)
        """,
        "timed out",
    ),
    "a full disk": contained(
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
    ),
    "a long file": contained(
        """
        def f():
            with open("/dev/shm/long", "wb", buffering=0) as out:
                try: out.truncate(2**40)
                except OSError: return "refused"
        """,
        "assert f() == 'refused'",
    ),
    "thousands of files": contained(
        """
        def f():
            held = []
            try:
                while True: held.append(open("/dev/null"))
            except OSError: return len(held)
        """,
        "assert f() < 200",
    ),
    "many processes": contained(
        """
        import os, time
        def f():
            try:
                for number in range(100):
                    if os.fork() == 0: time.sleep(1000)
            except OSError: return number
        """,
        "assert 10 < f() < 32",
    ),
    "limits": contained(
        """
        import resource
        def f():
            names = "CPU AS FSIZE NPROC CORE".split()
            return [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names]
        """,
        f"assert f() == {[(1, 2), (2**28,) * 2, (2**24,) * 2, (32, 32), (0, 0)]}, f()",
    ),
    "limits raised": contained(
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
    ),
    # Reaching others.
    "killing everything": fails(
        """
        import os, signal
        def f(x):
            for pid in (-1, 1, os.getppid()):
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            os.killpg(0, signal.SIGKILL)
        """,
    ),
    "daemons": Attack(
        """
        import os, time
        def f():
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        for fd in range(64):
                            try: os.close(fd)
                            except OSError: pass
                        os.execv("/usr/bin/sleep", [MARKER, "1000"])
                    os._exit(0)
            time.sleep(0.3)
            return sum(MARKER in open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc")
                       if p.isdigit() and p != "1")
        """,
        "assert f() == 3",
        frozenset({"passed"}),
    ),
    "the root folder": contained(
        "import os\ndef f(): return os.listdir('/')",
        "assert set(f()) <= set('bin sbin lib lib32 lib64 libx32 usr dev proc tmp'.split())",
    ),
    "processes outside": contained(
        "import os\ndef f(): return [int(each) for each in os.listdir('/proc') if each.isdigit()]",
        "assert len(f()) <= 3 and max(f()) < 100",
    ),
    "the judge's memory": contained(
        """
        import os
        def f():
            opened = []
            for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
                for name in ("mem", "environ", "maps", "auxv", "syscall", "stack"):
                    try: open(f"/proc/{pid}/{name}", "rb").read(1); opened.append((pid, name))
                    except OSError: pass
                for name in ("fd", "fdinfo", "map_files"):
                    try: opened += [(pid, each) for each in os.listdir(f"/proc/{pid}/{name}")]
                    except OSError: pass
                for name in ("cwd", "root", "exe"):
                    try: opened.append(os.readlink(f"/proc/{pid}/{name}"))
                    except OSError: pass
                with open(f"/proc/{pid}/cmdline") as told:
                    import re
                    opened += re.findall("HEX", told.read())
            return opened
        """.replace("HEX", HEX),
        "assert f() == [], f()",
    ),
    "debugging the judge": contained(
        """
        import ctypes, os
        def f():
            call = ctypes.CDLL(None, use_errno=True)
            done = []
            for pid in [int(p) for p in os.listdir("/proc") if p.isdigit()]:
                if pid == os.getpid(): continue
                for request in (16, 0x4206):  # attach, seize
                    if call.ptrace(request, pid, 0, 0) != -1: done.append((request, pid))
                block = ctypes.create_string_buffer(8)
                vector = (ctypes.c_void_p * 2)(ctypes.addressof(block), 8)
                if call.process_vm_readv(pid, vector, 1, vector, 1, 0) != -1: done.append(pid)
                other = call.syscall(434, pid, 0)  # pidfd_open, pidfd_getfd
                if other >= 0 and call.syscall(438, other, 1, 0) != -1: done.append(("fd", pid))
            return done
        """,
        "assert f() == [], f()",
    ),
    "a nonce in memory": contained(
        """
        import gc, os, re, sys
        def f():
            seen = []
            frame = sys._getframe()
            while frame is not None:
                seen += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back
            text = " ".join(map(repr, [*gc.get_objects(), *seen, dict(os.environ), sys.argv]))
            with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
                for line in maps:
                    first, last = (int(each, 16) for each in line.split()[0].split("-"))
                    if "rw" not in line: continue
                    try: memory.seek(first); text += memory.read(last - first).decode("latin1")
                    except (OSError, ValueError, OverflowError): pass
            return re.findall("HEX(?= (?:ready|passed))|nonce", text)
        """.replace("HEX", HEX),
        "assert len([each for each in f() if each != 'nonce']) == 0, f()",
    ),
    "the python replaced": contained(
        """
        import os, sys
        def f():
            done = []
            for path in (sys.executable, os.path.realpath(sys.executable), os.__file__,
                         "/usr/bin/x", "/bin/sh", "/proc/1/exe"):
                for mode in ("r+b", "wb", "ab"):
                    try: open(path, mode).close(); done.append((path, mode))
                    except OSError: pass
                for change, more in ((os.unlink, ()), (os.chmod, (0o777,)), (os.rename, ("x",))):
                    try: change(path, *more); done.append(path)
                    except OSError: pass
            return done
        """,
        "assert f() == [], f()",
    ),
    "modules of its own": Attack(
        """
        import sys
        for folder in {"/tmp", ".", *sys.path}:
            for name in ("math", "random", "copy", "heapq"):
                try: open(f"{folder}/{name}.py", "w").write("def sqrt(x): return 2\\nfabs = sqrt")
                except OSError: pass
        def f(x): return 3
        """,
        "import heapq, copy, random, math\nassert math.sqrt(f(1)) == 2 and heapq.heapify",
        frozenset({"failed"}),
    ),
    "rights": contained(
        """
        import ctypes, os
        def f():
            call = ctypes.CDLL(None)
            done = []
            for name, act in {
                "setuid": lambda: call.setuid(0), "chroot": lambda: call.chroot(b"/tmp"),
                "mount": lambda: call.mount(b"x", b"/tmp", b"tmpfs", 0, 0),
                "umount": lambda: call.umount2(b"/tmp", 2),
                "remount": lambda: call.mount(b"x", b"/usr", b"x", 32 | 4096, 0),
                "setns": lambda: call.setns(os.open("/proc/self/ns/net", 0), 0),
                "hostname": lambda: call.sethostname(b"x", 1),
                "mknod": lambda: call.mknod(b"/tmp/disk", 0o60666, 0xFE00),
            }.items():
                if act() == 0: done.append(name)
            status = open("/proc/self/status").read()
            if "NoNewPrivs:\\t1" not in status or "CapEff:\\t0000000000000000" not in status:
                done.append("rights")
            return done
        """,
        "assert f() in ([], ['setns']), f()",
    ),
    "a namespace of its own": contained(
        """
        import ctypes
        def f(): return ctypes.CDLL(None).unshare(0x10000000 | 0x20000)
        """,
        "assert f() == -1",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(box: Sandbox, name: str, marker: str) -> None:
    attack = ATTACKS[name]
    check = Check(marked(marker, attack.solution), attack.tests)
    outcome = replace(box, limits=attack.limits).run(check)
    assert outcome.kind in attack.kinds, outcome
    assert outcome.passed == (outcome.kind == "passed")
    assert "\n" not in outcome.detail
    assert len(outcome.detail) <= 400


def told(box: Sandbox, solution: str, marker: str, **values: object) -> str:
    """What `f()` of a solution returns, a text: the tests of a check see it and say it."""
    tests = "answer = f()\nassert isinstance(answer, str)\nraise KeyError('<' + answer + '>')"
    outcome = box.run(Check(marked(marker, solution, **values), tests))
    assert outcome.kind == "failed", outcome
    return outcome.detail.partition("<")[2].rpartition(">")[0]


def plainly(solution: str, marker: str, **values: object) -> str:
    """The same without any sandbox: shows that a program can do what the sandbox prevents."""
    text = marked(marker, solution, **values) + "\nprint(f(), end='')"
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read and write, so that no mode of a file protects it."""
    with tempfile.TemporaryDirectory(prefix="sandbox-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text("reached")
        (folder / "secret").chmod(0o666)
        yield folder


READ = """
import os
def f():
    os.makedirs("/tmp/here", exist_ok=True)
    up = "../" * 12 + PATH
    for link in (PATH, up):
        try: os.symlink(link, "/tmp/here/link" + str(len(link)))
        except OSError: pass
    try: os.link(PATH, "/tmp/here/hard")
    except OSError: pass
    ways = [PATH, up, "/proc/1/root" + PATH, "/proc/self/root" + PATH, "/proc/1/cwd" + PATH,
            "/old" + PATH, "/tmp/here/hard"]
    ways += ["/tmp/here/" + each for each in os.listdir("/tmp/here")]
    for way in ways:
        try: return open(way).read()[:7]
        except OSError: pass
    return "nothing"
"""


def test_files_cannot_be_read(box: Sandbox, marker: str, open_folder: Path) -> None:
    path = str(open_folder / "secret")
    assert plainly(READ.replace("/tmp/here", str(open_folder / "here")), marker, PATH=path) == (
        "reached"
    )
    for each in (path, __file__, "/etc/passwd", "/etc/hostname"):
        assert told(box, READ, marker, PATH=each) == "nothing"


def test_folders_cannot_be_listed(box: Sandbox, marker: str, open_folder: Path) -> None:
    solution = """
    import os
    def f():
        try: return " ".join(os.listdir(PATH))
        except OSError: return "nothing"
    """
    assert "secret" in plainly(solution, marker, PATH=str(open_folder))
    for each in (open_folder, Path.home(), Path.cwd(), Path(__file__).parent, "/etc", "/root"):
        assert told(box, solution, marker, PATH=str(each)) == "nothing"
    assert told(box, solution, marker, PATH="/tmp") == ""


def test_files_cannot_be_written_or_deleted(box: Sandbox, marker: str, open_folder: Path) -> None:
    solution = """
    import os, shutil
    def f():
        done = []
        places = [FOLDER, "/", "/usr/bin", "/var/tmp", "/home", "/root", "/etc", "/dev", "/proc"]
        for folder in places:
            try: open(folder + "/" + MARKER, "w").close(); done.append(folder)
            except OSError: pass
        for folder in ("/tmp", "/dev/shm"): open(folder + "/" + MARKER, "w").close()
        shutil.rmtree(FOLDER, ignore_errors=True)
        for folder in ("/usr", "/bin", "/etc"): shutil.rmtree(folder, ignore_errors=True)
        return " ".join(done)
    """
    assert told(box, solution, marker, FOLDER=str(open_folder)) == ""
    assert [each.name for each in open_folder.iterdir()] == ["secret"]
    assert (open_folder / "secret").read_text() == "reached"
    assert Path("/usr/bin/env").exists()


def test_nothing_is_kept_from_one_program_to_the_next(box: Sandbox, marker: str) -> None:
    solution = """
    import os
    def f():
        found = [each for folder in ("/tmp", "/dev/shm") for each in os.listdir(folder)]
        for folder in ("/tmp", "/dev/shm"): open(folder + "/" + MARKER, "w").close()
        return " ".join(found)
    """
    assert [told(box, solution, marker) for _ in range(2)] == ["", ""]


def test_the_environment_is_empty(
    box: Sandbox, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "reached")
    solution = """
    import glob, os
    def f():
        text = repr(dict(os.environ))
        for path in glob.glob("/proc/*/environ"):
            try: text += open(path).read()
            except OSError: pass
        return "reached" if "reached" in text else " ".join(sorted(os.environ))
    """
    assert plainly(solution, marker) == "reached"
    names = set(told(box, solution, marker).split())
    assert names <= {"PATH", "HOME", "LANG", "LC_CTYPE", "PWD", "PYTHONHASHSEED", "PYTHONSAFEPATH"}


CONNECT = """
import socket
def f():
    kind = socket.SOCK_DGRAM if KIND == "udp" else socket.SOCK_STREAM
    try:
        way = socket.socket(socket.AF_UNIX if isinstance(TO, str) else socket.AF_INET, kind)
        way.settimeout(2)
        way.connect(TO)
        way.send(b"reached")
    except OSError: return "nothing"
    return "reached"
"""


@pytest.fixture(params=["tcp", "udp", "unix", "abstract"])
def listener(request: pytest.FixtureRequest, open_folder: Path) -> Iterator[tuple[str, object]]:
    """A kind of socket of this process and where it can be reached."""
    kind = request.param
    family = socket.AF_INET if kind in ("tcp", "udp") else socket.AF_UNIX
    address: object = ("127.0.0.1", 0)
    if family == socket.AF_UNIX:
        address = str(open_folder / "socket") if kind == "unix" else "\0" + secrets.token_hex(8)
    listening = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    with listening:
        listening.bind(address)  # type: ignore[arg-type]
        if kind == "unix":
            (open_folder / "socket").chmod(0o777)
        if kind != "udp":
            listening.listen(8)
        name = listening.getsockname()
        yield kind, name.decode("latin1") if isinstance(name, bytes) else name


def test_no_socket_can_be_reached(box: Sandbox, marker: str, listener: tuple[str, object]) -> None:
    kind, address = listener
    assert plainly(CONNECT, marker, KIND=kind, TO=address) == "reached"
    answer = told(box, CONNECT, marker, KIND=kind, TO=address)
    # A datagram to a network without anyone may be sent, but arrives nowhere.
    assert answer == "nothing"


def test_only_local_sockets_can_be_made(box: Sandbox, marker: str) -> None:
    solution = """
    import socket
    def f():
        made = []
        for family in range(64):
            for kind in (1, 2, 3, 5):
                try: socket.socket(family, kind); made.append(family)
                except OSError: pass
        return " ".join(map(str, sorted(set(made))))
    """
    assert told(box, solution, marker) == "1"


def test_every_namespace_is_its_own(box: Sandbox, marker: str) -> None:
    solution = """
    import os
    def f(): return " ".join(os.readlink("/proc/self/ns/" + name) for name in NAMES)
    """
    names = ["net", "pid", "mnt", "ipc", "uts", "cgroup"]
    theirs = told(box, solution, marker, NAMES=names).split()
    assert len(theirs) == len(names)
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    assert [a for a, b in zip(ours, theirs, strict=True) if a == b] == []


def test_processes_outside_cannot_be_killed(box: Sandbox, marker: str) -> None:
    solution = """
    import os, signal
    def f():
        done = []
        for pid in range(2, 2**16):
            try:
                if pid != os.getpid(): os.kill(pid, signal.SIGKILL); done.append(pid)
            except OSError: pass
        for pid in PIDS:
            try: os.kill(pid, signal.SIGKILL); done.append(pid)
            except OSError: pass
        return " ".join(map(str, done))
    """
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            told(box, solution, marker, PIDS=[victim.pid, os.getpid()])
            assert victim.poll() is None
        finally:
            victim.kill()


def test_a_bomb_in_one_sandbox_takes_nothing_from_another(box: Sandbox, marker: str) -> None:
    bomb = Check(marked(marker, ATTACKS["a fork bomb"].solution), "assert f(1) == 2")
    honest = Check("def f(x):\n    return x + 1\n", "assert f(1) == 2")
    limits = replace(LIMITS, wall_seconds=8)
    outcomes = replace(box, limits=limits).run_all([bomb, honest, honest, bomb], workers=2)
    assert [each.passed for each in outcomes] == [False, True, True, False]


def test_an_interrupt_takes_the_sandbox_down(box: Sandbox, marker: str) -> None:
    driver = """
import os
from dlm.eval.sandbox import Sandbox
from dlm.eval.task import Check
box = next(each for each in Sandbox.each() if each.rung == os.environ["RUNG"])
print("ready", flush=True)
try:
    box.run(Check(os.environ["SOLUTION"], "f(1)"))
except KeyboardInterrupt:
    print("interrupted")
"""
    solution = marked(marker, ATTACKS["sleep"].solution)
    with driven(driver, RUNG=box.rung, SOLUTION=solution) as process:
        assert wait_until(lambda: bool(processes(marker)))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].strip() == "interrupted"
        assert processes(marker) == []


def driven(driver: str, **environment: str) -> "subprocess.Popen[str]":
    """A process that has loaded the sandbox and says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", driver],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether something holds before that long."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_killed_parent_takes_all_sandboxes_along(
    boxes: dict[str, Sandbox], marker: str, tmp_path: Path
) -> None:
    if not boxes:
        pytest.skip("no protection works here")
    driver = """
import os
from threading import Thread
from dlm.eval.sandbox import Sandbox
from dlm.eval.task import Check
boxes = list(Sandbox.each())
print("ready", flush=True)
check = Check(os.environ["SOLUTION"], "f(1)")
for box in boxes:
    Thread(target=box.run, args=(check,)).start()
"""
    solution = marked(marker, "import os; os.fork(); open('/tmp/x', 'w')" + SLEEP)
    with driven(driver, TMPDIR=str(tmp_path), SOLUTION=solution) as process:
        assert wait_until(lambda: len(processes(marker)) >= 2 * len(boxes))
        process.kill()
    assert gone(marker)
    assert list(tmp_path.iterdir()) == []


SLEEP = """
import time
def f(x): time.sleep(1000)
time.sleep(1000)
"""

KILLED_AT_ANY_MOMENT = r"""
import ctypes, os, random, signal, time
from dlm.eval.sandbox import Sandbox
from dlm.eval.sandbox.run import descendants
from dlm.eval.task import Check
boxes = list(Sandbox.each())
print("ready", flush=True)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # those whose parent dies become ours
check = Check("import time\ntime.sleep(1000)", "")
for number in range(24):
    pid = os.fork()
    if not pid:
        boxes[number % len(boxes)].run(check)
    time.sleep(random.Random(number).uniform(0, 0.15))
    os.kill(pid, signal.SIGKILL)
for _ in range(600):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError:
        break
    time.sleep(0.02)
print("left", len(descendants(os.getpid())))
"""


def test_a_parent_killed_at_any_moment_leaves_no_process(boxes: dict[str, Sandbox]) -> None:
    if not boxes:
        pytest.skip("no protection works here")
    with driven(KILLED_AT_ANY_MOMENT) as process:
        assert process.communicate(timeout=120)[0] == "left 0\n"
