"""A sandbox of every kind, and programs in it that go by a name of their own."""

import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm.eval.sandbox import Limits, Outcome, Sandbox
from dlm.eval.task import Check

LIMITS = Limits(cpu_seconds=1, wall_seconds=30, memory_bytes=2**28, processes=32)
# The best protection in the fast suite, all in the slow one; the same in every test process.
RUNGS = ["bubblewrap", "unshare"] if shutil.which("bwrap") else ["unshare", "bubblewrap"]
PARAMETERS = [RUNGS[0], pytest.param(RUNGS[1], marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def every_box() -> dict[str, Sandbox]:
    """What works on this machine."""
    return {each.rung: each for each in Sandbox.each(LIMITS)}


@pytest.fixture
def boxes(every_box: dict[str, Sandbox]) -> dict[str, Sandbox]:
    if not every_box:
        pytest.skip("no protection works here")
    return every_box


@pytest.fixture(params=PARAMETERS)
def box(request: pytest.FixtureRequest, every_box: dict[str, Sandbox]) -> Sandbox:
    if request.param not in every_box:
        pytest.skip(f"{request.param} does not work here")
    return every_box[request.param]


def running(marker: str) -> list[str]:
    """Processes of the machine that go by this name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names = (folder / "comm").read_text() + (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if marker in names:
            found.append(folder.name)
    return found


@pytest.fixture
def marker() -> Iterator[str]:
    """A name for a test's processes and files, none of which may be left behind."""
    name = "m" + secrets.token_hex(5)
    yield name
    assert running(name) == []
    left = [Path(each, name) for each in ("/", "/tmp", "/var/tmp", "/dev/shm", "/usr/bin", ".")]
    assert [each for each in [*left, Path.home() / name] if each.exists()] == []


@pytest.fixture
def processes(marker: str) -> Callable[[], list[str]]:
    """Gives the processes of this test's programs."""
    return lambda: running(marker)


@pytest.fixture
def eventually() -> Callable[..., bool]:
    """Says whether something holds before long."""

    def wait(holds: Callable[[], bool], seconds: float = 30) -> bool:
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    return wait


@pytest.fixture
def marked(marker: str) -> Callable[..., str]:
    """Makes a solution that goes by the test's name, with values as globals."""

    def make(solution: str, **values: Any) -> str:
        lines = [f"MARKER = {marker!r}", "open('/proc/self/comm', 'w').write(MARKER)"]
        lines += [f"{name} = {value!r}" for name, value in values.items()]
        return "\n".join([*lines, textwrap.dedent(solution)])

    return make


@pytest.fixture
def attacked(box: Sandbox, marked: Callable[..., str]) -> Callable[..., Outcome]:
    """Runs a solution against tests."""

    def attack(solution: str, tests: str, **limits: Any) -> Outcome:
        within = replace(box, limits=replace(LIMITS, **limits))
        return within.run(Check(marked(solution), tests))

    return attack


@pytest.fixture
def told(box: Sandbox, marked: Callable[..., str]) -> Callable[..., str]:
    """Gives the text that `f()` of a solution returns: the tests of a check see it and say it."""

    def ask(solution: str, **values: Any) -> str:
        tests = "answer = f()\nassert isinstance(answer, str)\nraise KeyError('<' + answer + '>')"
        outcome = box.run(Check(marked(solution, **values), tests))
        assert outcome.kind == "failed", outcome
        return outcome.detail.partition("<")[2].rpartition(">")[0]

    return ask


@pytest.fixture
def plainly(marked: Callable[..., str]) -> Callable[..., str]:
    """The same without any sandbox: shows that a program can do what the sandbox prevents."""

    def ask(solution: str, **values: Any) -> str:
        text = marked(solution, **values) + "\nprint(f(), end='')"
        command = [sys.executable, "-c", text]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return ask


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read and write, so that no mode of a file protects it."""
    with tempfile.TemporaryDirectory(prefix="sandbox-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text("reached")
        (folder / "secret").chmod(0o666)
        yield folder
