"""Who dies with whom: the sandbox with its parent, at any moment; nobody else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.eval.sandbox import Sandbox
from dlm.eval.task import Check

Tell = Callable[..., str]
Seen = Callable[[], list[str]]
Wait = Callable[..., bool]
Boxes = dict[str, Sandbox]

SLEEP = """
import time
def f(x): time.sleep(1000)
time.sleep(1000)
"""

BOMB = """
import os
def f(x):
    while True:
        try: os.fork()
        except OSError: pass
"""


def test_processes_outside_cannot_be_killed(told: Tell) -> None:
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
            told(solution, PIDS=[victim.pid, os.getpid()])
            assert victim.poll() is None
        finally:
            victim.kill()


@pytest.mark.slow
def test_a_bomb_in_one_sandbox_takes_nothing_from_another(box: Sandbox, marked: Tell) -> None:
    bomb = Check(marked(BOMB), "assert f(1) == 2")
    honest = Check("def f(x):\n    return x + 1\n", "assert f(1) == 2")
    outcomes = replace(box, limits=replace(box.limits, wall_seconds=8)).run_all(
        [bomb, honest, honest], workers=2
    )
    assert [each.passed for each in outcomes] == [False, True, True]


def test_an_interrupt_takes_the_sandbox_down(
    box: Sandbox, marked: Tell, processes: Seen, eventually: Wait
) -> None:
    driver = """
import os, signal
from dlm.eval.sandbox import Sandbox
from dlm.eval.task import Check
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's "&"
box = next(each for each in Sandbox.each() if each.rung == os.environ["RUNG"])
print("ready", flush=True)
try:
    box.run(Check(os.environ["SOLUTION"], "f(1)"))
except KeyboardInterrupt:
    print("interrupted")
"""
    solution = marked(SLEEP)
    with driven(driver, RUNG=box.rung, SOLUTION=solution) as process:
        assert eventually(lambda: bool(processes()))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].strip() == "interrupted"
        assert processes() == []


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


def test_a_killed_parent_takes_all_sandboxes_along(
    boxes: Boxes, marked: Tell, processes: Seen, eventually: Wait, tmp_path: Path
) -> None:
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
    solution = marked("import os; os.fork(); open('/tmp/x', 'w')" + SLEEP)
    with driven(driver, TMPDIR=str(tmp_path), SOLUTION=solution) as process:
        assert eventually(lambda: len(processes()) >= 2 * len(boxes))
        process.kill()
    assert eventually(lambda: not processes())
    assert list(tmp_path.iterdir()) == []


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
for _ in range(1500):  # one killed before its death signal is set ends with its time, 16 s
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError:
        break
    time.sleep(0.02)
print("left", len(descendants(os.getpid())))
"""


def test_a_parent_killed_at_any_moment_leaves_no_process(boxes: Boxes) -> None:
    with driven(KILLED_AT_ANY_MOMENT) as process:
        assert process.communicate(timeout=120)[0] == "left 0\n"
