"""Choice of the sandbox that a machine supports, and running of checks in it."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlm.eval.sandbox import judge as judging
from dlm.eval.sandbox.ladder import BUBBLEWRAP, UNPROTECTED, Rung, pythons, rungs, unprotected
from dlm.eval.sandbox.outcome import Limits, Outcome
from dlm.eval.sandbox.run import SPACE, TIME, WORDS, Run, run
from dlm.eval.sandbox.wire import encode
from dlm.eval.task import Check
from dlm.options import boolean, integer

PROBE = Check(
    "def double(x):\n    return 2 * x\n",
    "assert double([1]) == [1, 1]\ntry:\n    double(None)\nexcept TypeError:\n    pass\n",
)
STOPPED = {
    TIME: (judging.TIMED_OUT, judging.NO_TIME),
    SPACE: (judging.MEMORY, "all processes together use too much"),
    WORDS: (judging.KILLED, "too much output"),
}


class DidNotStart(RuntimeError):
    """The sandbox itself failed, which tells nothing about a solution."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs untrusted programs; the docstring of the package describes the protection."""

    limits: Limits
    _rung: Rung
    _programs: tuple[bytes, bytes] = field(repr=False)  # judge and subject

    @classmethod
    def find(cls, unsafe: bool = False, limits: Limits | None = None) -> "Sandbox":
        """Find the best protection that works here, by running a small program in each.

        Raises:
            ValueError: none works and `unsafe` is not set; the message says what to install.
        """
        boolean("unsafe", unsafe)
        failures: list[str] = []
        found = next(cls.each(limits, failures), None)
        if found is not None:
            return found
        if not unsafe:
            tried = "".join(f"\n  {each}" for each in failures) or " none is installed"
            raise ValueError(
                "running generated code needs a sandbox, and none works here. Install bubblewrap"
                " (apt install bubblewrap) or, as root, util-linux (unshare and setpriv), and a"
                " Python that every user can execute (apt install python3), or accept with"
                f" --unsafe that nothing is protected. Tried:{tried}"
            )
        return cls._of(unprotected(), limits or Limits())

    @classmethod
    def each(
        cls, limits: Limits | None = None, failures: list[str] | None = None
    ) -> Iterator["Sandbox"]:
        """Yield every protection that works here, best first, with one interpreter for each.

        Args:
            limits: the limits of a check.
            failures: a line is appended for every protection that does not work.
        """
        done = set()
        if failures is not None and not pythons():
            failures.append("no python3 in /usr/bin, /usr/local/bin or this environment")
        for rung in rungs():
            if rung.name in done:
                continue
            box = cls._of(rung, limits or Limits())
            why = box._tried()
            if not why:
                done.add(rung.name)
                yield box
            elif failures is not None:
                failures.append(f"{rung.name} with {rung.python.path}: {why}")

    @classmethod
    def _of(cls, rung: Rung, limits: Limits) -> "Sandbox":
        return cls(limits, rung, (program("judge"), program("subject")))

    @property
    def rung(self) -> str:
        """The name of the protection: bubblewrap, unshare or unprotected."""
        return self._rung.name

    def statement(self) -> str:
        """What is and is not protected here, in a few lines of text."""
        return stated(self._rung, self.limits)

    def facts(self) -> dict[str, Any]:
        """What determines the outcome of a check: the protection, the interpreter, the limits."""
        python = self._rung.python.version()
        return {"sandbox": self.rung, "python": python, **asdict(self.limits)}

    def run(self, check: Check) -> Outcome:
        """Run a check; there is an outcome whatever the solution does.

        Raises:
            RuntimeError: the sandbox itself did not start, which tells nothing about the solution.
        """
        nonce = secrets.token_hex(16)
        ran = run(
            self._rung.command(self.limits),
            self._feed(check, nonce),
            f"{nonce} ready\n".encode(),
            self.limits,
        )
        if not ran.is_ready:
            said = " ".join(ran.errors.decode("utf-8", "replace").split())[-500:]
            raise DidNotStart(
                f"the {self.rung} sandbox did not start (status {ran.process.returncode}): {said}"
            )
        kind, detail = verdict(ran, nonce)
        return Outcome(kind == judging.PASSED, kind, detail, ran.seconds)

    def run_all(self, checks: Iterable[Check], workers: int = 2) -> list[Outcome]:
        """Run checks in parallel; returns outcomes in the order of the checks.

        A check that the wall clock stops while others run, with CPU time left, is run again alone,
        so that `workers` does not change outcomes.

        Raises:
            ValueError: `workers` is not a positive int.
            RuntimeError: the sandbox itself did not start.
        """
        integer("workers", workers, least=1)
        listed: Sequence[Check] = list(checks)
        pool = ThreadPoolExecutor(workers, "sandbox")
        try:
            found = list(pool.map(self.run, listed))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if min(workers, len(listed)) < 2:
            return found
        return [
            self.run(check) if starved(outcome) else outcome
            for check, outcome in zip(listed, found, strict=True)
        ]

    def _feed(self, check: Check, nonce: str) -> bytes:
        """The input of a judge: its own program, then its task."""
        limits = self.limits
        task = encode(
            {
                "nonce": nonce,
                "subject": self._programs[1],
                "solution": check.solution,
                "tests": check.tests,
                "names": list(check.names),
                "cpu_seconds": limits.cpu_seconds,
                "wall_seconds": float(limits.wall_seconds),
                "memory_bytes": limits.memory_bytes,
                "file_bytes": limits.file_bytes,
                # Counted per user, and without a sandbox that is the user who runs us.
                "processes": 0 if self.rung == UNPROTECTED else limits.processes,
            }
        )
        return b"".join(b"%08x" % len(part) + part for part in (self._programs[0], task))

    def _tried(self) -> str:
        """Why a small program does not work in this sandbox; "" if it does."""
        try:
            outcome = self.run(PROBE)
        except (OSError, DidNotStart) as error:
            return str(error)
        return "" if outcome.passed else f"{outcome.kind}: {outcome.detail}"


def verdict(ran: Run, nonce: str) -> tuple[str, str]:
    """The outcome of a check: the judge's line with the nonce, or why there is none."""
    if ran.stopped:
        return STOPPED[ran.stopped]
    for line in ran.output.decode("ascii", "replace").split("\n")[:-1]:
        said, _, rest = line.partition(" ")
        kind, _, detail = rest.partition(": ")
        if secrets.compare_digest(said.encode(), nonce.encode()) and rest != "ready":
            return kind, shown(detail)[: judging.DETAIL]
    return judging.KILLED, f"everything died, status {ran.process.returncode}"


def starved(outcome: Outcome) -> bool:
    """Whether the wall clock ended a check that had CPU time left, which others may have used."""
    return outcome.kind == judging.TIMED_OUT and outcome.detail == judging.NO_TIME


def shown(text: str) -> str:
    """Text without characters that could control a terminal."""
    return "".join(each if " " <= each <= "~" else f"\\x{ord(each):02x}" for each in text)


def program(name: str) -> bytes:
    """The source of a process: its modules in order, and a call of the last one's `main`."""
    package = __package__
    lines = [
        "import sys",
        "sys.path[:] = [each for each in sys.path if each]",
        "def load(name, source):",
        "    module = sys.modules[name] = type(sys)(name)",
        "    exec(compile(source, name, 'exec', dont_inherit=True), module.__dict__)",
    ]
    for each in ("wire", "link", *(["barrier"] if name == "judge" else []), name):
        source = Path(__file__).with_name(f"{each}.py").read_text()
        lines.append(f"load({f'{package}.{each}'!r}, {source!r})")
    lines.append(f"sys.modules[{f'{package}.{name}'!r}].main()")
    return "\n".join(lines).encode()


def stated(rung: Rung, limits: Limits) -> str:
    """Describe the protection of a rung with these limits."""
    if rung.name == UNPROTECTED:
        return (
            "generated code runs UNPROTECTED, as you: it can read and delete your files, use the"
            " network\nand leave processes behind. Only time and memory of a process are limited;"
            " install bubblewrap."
        )
    view = "nothing" if not rung.python.folder else f"nothing but {rung.python.folder}"
    how = "bubblewrap" if rung.name == BUBBLEWRAP else "Linux namespaces (unshare)"
    user = "a user of its own" if rung.root else "your user, without rights"
    return (
        f"generated code runs in {how} as {user}, with {rung.python.path}\n"
        f"  network: none; files: /usr to read, {view} of yours, {limits.file_bytes:,} bytes of"
        " scratch that vanish; environment: empty\n"
        f"  processes: its own, at most {limits.processes}, all killed at the end; CPU"
        f" {limits.cpu_seconds} s each, {limits.wall_seconds:g} s in all\n"
        f"  memory: {limits.memory_bytes:,} bytes each, twice that in all; output discarded\n"
        "  not covered: holes in the kernel, side channels, load on this machine within the limits"
    )
