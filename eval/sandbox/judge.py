"""The process that runs the tests and reports how they ended; it starts inside the sandbox.

It reads a nonce, the tests and the solution from stdin, hides its memory from other processes of
its own user, starts the subject and executes the tests with functions that call the subject.
Everything it reports begins with the nonce, which the subject never has.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import resource
import signal
import sys
import time
from types import CodeType

from dlm.eval.sandbox.barrier import ask, raise_barrier
from dlm.eval.sandbox.link import REMOTE, Broken, Function, Link
from dlm.eval.sandbox.wire import decode

TYPE_CHECKING = False  # importing `typing` and `collections` takes longer than most checks
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

PASSED, FAILED, ERROR = "passed", "failed", "error"
TIMED_OUT, MEMORY, KILLED, UNREADABLE = "timed out", "out of memory", "killed", "unreadable"
NO_TIME = "no time left"  # detail of a check that the wall clock stopped with CPU time left
DETAIL = 300  # characters
NO_DUMP, DEATH_SIGNAL = 4, 1  # PR_SET_DUMPABLE, PR_SET_PDEATHSIG
FILES = 128  # open at once


class Verdict(BaseException):
    """How a check ended."""

    def __init__(self, kind: str, detail: str = "") -> None:
        """Take one of the kinds above, and a line with details."""
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


def main() -> None:
    """Judge one check and report how it ended."""
    task = decode(read(int(read(8), 16)))
    hide()
    raise_barrier()
    limit(task)
    say = speaker(os.dup(1), task["nonce"])
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)  # the output of the tests is discarded
    os.close(null)
    signal.signal(signal.SIGXCPU, lambda *_: say(TIMED_OUT, "the tests used up the CPU time"))
    signal.signal(signal.SIGALRM, lambda *_: say(TIMED_OUT, NO_TIME))
    signal.setitimer(signal.ITIMER_REAL, task["wall_seconds"] + 1)
    try:
        judge(task)
    except Verdict as verdict:
        say(verdict.kind, verdict.detail)
    except BaseException as error:
        say(ERROR, line_of(error))


def read(size: int) -> bytes:
    """Read this many bytes from stdin; exit if they do not arrive."""
    text = b""
    while len(text) < size:
        part = os.read(0, size - len(text))
        if not part:
            os._exit(3)
        text += part
    return text


def speaker(output: int, nonce: str) -> Callable[[str, str], NoReturn]:
    """Report that this process has started; return a function that reports the outcome and exits.

    Both lines begin with the nonce.
    """
    os.write(output, f"{nonce} ready\n".encode())

    def say(kind: str, detail: str) -> NoReturn:
        """Write the outcome and stop everything."""
        os.write(output, f"{nonce} {kind}: {detail}\n".encode("ascii", "backslashreplace"))
        os._exit(0)

    return say


def hide() -> None:
    """Close memory, files and environment of this process to other processes of its user.

    Also have it killed with its parent again, which an earlier change of user may have undone.

    Raises:
        OSError: the kernel refuses it.
    """
    call = ctypes.CDLL(None, use_errno=True).prctl
    ask(call, NO_DUMP, 0)
    ask(call, DEATH_SIGNAL, signal.SIGKILL)


def limit(task: dict[str, Any]) -> None:
    """Limit this process and all processes that it starts; none can raise the limits again."""
    cpu = int(task["cpu_seconds"])
    bounds = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (task["memory_bytes"],) * 2,
        resource.RLIMIT_FSIZE: (task["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (FILES, FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    if task["processes"]:
        bounds[resource.RLIMIT_NPROC] = (task["processes"],) * 2
    for kind, bound in bounds.items():
        resource.setrlimit(kind, bound)


def judge(task: dict[str, Any]) -> NoReturn:
    """Execute the tests against the solution.

    Raises:
        Verdict: always; how the check ended.
    """
    tests = compile(task["tests"], "<tests>", "exec", dont_inherit=True)
    pid, link = start(task["subject"])
    try:
        examine(tests, task, link)
    except Broken:
        pass  # `link.broken` has the reason, and a test cannot suppress that
    except Exception as error:
        raise Verdict(kind_of(error), where(error, task["tests"])) from None
    if link.broken:
        raise ended(pid, link.broken, int(task["cpu_seconds"]))
    raise Verdict(PASSED)


def examine(tests: CodeType, task: dict[str, Any], link: Link) -> None:
    """Load the solution in the subject and execute the tests here.

    Raises:
        Verdict: the solution cannot be loaded.
        Broken: the subject is gone, or breaks the protocol.
        Exception: as raised by the tests.
    """
    try:
        Function(link, 0, "load")(task["solution"])
    except Exception as error:
        kind = MEMORY if isinstance(error, MemoryError) else ERROR
        raise Verdict(kind, line_of(error)) from None
    wanted = task["names"] or sorted(mentioned(tests) - set(dir(builtins)))
    space = {"__name__": "tests"} | fetched(link, [n for n in wanted if not n.startswith("__")])
    if "random" in task["tests"]:
        import random

        random.seed(0)  # makes scores reproducible
    exec(tests, space)


def fetched(link: Link, wanted: list[str]) -> dict[str, Any]:
    """The requested globals that the solution has, and no others that it may send."""
    found = Function(link, 1, "fetch")(wanted)
    space: dict[str, Any] = {}
    for name in wanted if type(found) is dict else ():
        match found.get(name):
            case ("value", value):
                space[name] = value
            case ("module", str(module)) if module == name in sys.stdlib_module_names:
                space[name] = __import__(name)  # ours, not the solution's changed one
    return space


def mentioned(code: CodeType) -> set[str]:
    """The names of globals and attributes in compiled code."""
    inner = (mentioned(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def start(program: bytes) -> tuple[int, Link]:
    """Start the subject, which inherits two pipes and nothing else from this process."""
    there, to = os.pipe()
    back, here = os.pipe()
    flags = ["-s", "-S", "-B", "-c", BOOT]
    null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    moves = [(os.POSIX_SPAWN_DUP2, there, 0), (os.POSIX_SPAWN_DUP2, here, 1), null]
    pid = os.posix_spawn(
        sys.executable, [sys.executable, *flags], dict(os.environ), file_actions=moves
    )
    os.close(there)
    os.close(here)
    os.write(to, b"%08x" % len(program) + program)
    return pid, Link(back, to)


BOOT = """import os
def read(size):
    text = b""
    while len(text) < size:
        part = os.read(0, size - len(text))
        if not part: os._exit(3)
        text += part
    return text
exec(read(int(read(8), 16)))"""
"""Python code that executes Python from stdin, which keeps programs out of command lines."""


def ended(pid: int, why: str, cpu_seconds: int) -> Verdict:
    """The verdict on a subject that no longer answers."""
    for _ in range(50):
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        return Verdict(UNREADABLE, f"the solution closed its channel: {why}")
    used = usage.ru_utime + usage.ru_stime
    if why.startswith("unreadable"):
        return Verdict(UNREADABLE, why)
    if os.WIFEXITED(status):
        return Verdict(KILLED, f"the solution ended its process, status {os.WEXITSTATUS(status)}")
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= cpu_seconds):
        return Verdict(TIMED_OUT, f"{used:.1f} s of CPU time")
    return Verdict(KILLED, f"the solution died of signal {number}")


def kind_of(error: Exception) -> str:
    """The kind of an error: whether a test failed, or the solution raised it."""
    if not getattr(error, REMOTE, False):
        return FAILED
    return MEMORY if isinstance(error, MemoryError) else ERROR


def line_of(error: BaseException) -> str:
    """An error as one line of plain text."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:DETAIL] if text else type(error).__name__


def where(error: Exception, tests: str) -> str:
    """An error as one line; if it has no message, with the line of the tests that raised it."""
    text = line_of(error)
    number = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            number = trace.tb_lineno
        trace = trace.tb_next
    lines = tests.splitlines()
    if ":" in text or not 0 < number <= len(lines):
        return text
    return f"{text}: {lines[number - 1].strip()}"[:DETAIL]
