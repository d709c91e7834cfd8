"""The sandbox's own rules: limits, which protection is found, and the process around it."""

import os
import secrets
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm.eval.sandbox import Limits, Outcome, Sandbox, barrier, judge
from dlm.eval.sandbox.box import DidNotStart, program, verdict
from dlm.eval.sandbox.ladder import BUBBLEWRAP, UNSHARE, Python, Rung, pythons, rungs
from dlm.eval.sandbox.run import SPACE, TIME, WORDS, Run, children, descendants, resident, run
from dlm.eval.task import Check

LIMITS = Limits(cpu_seconds=2, wall_seconds=30, memory_bytes=2**28)


def ran(box: Sandbox, solution: str, tests: str) -> Outcome:
    return box.run(Check(solution, tests))


# Limits.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_seconds", 0),
        ("cpu_seconds", 1.5),
        ("cpu_seconds", True),
        ("wall_seconds", 0.5),
        ("wall_seconds", float("inf")),
        ("wall_seconds", "15"),
        ("memory_bytes", 2**20),
        ("processes", 1),
        ("output_bytes", 10),
        ("file_bytes", -1),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_the_wall_clock_is_not_the_first_to_run_out() -> None:
    with pytest.raises(ValueError, match="wall_seconds must be >= cpu_seconds = 5, got 4"):
        Limits(cpu_seconds=5, wall_seconds=4)
    assert Limits().cpu_seconds < Limits().wall_seconds


def test_limits_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Limits().processes = 5  # type: ignore[misc]


# The ladder.


def test_without_a_protection_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="bubblewrap") as caught:
        Sandbox.find()
    for word in ("apt install bubblewrap", "unshare", "--unsafe", "none is installed"):
        assert word in str(caught.value)


def test_what_was_tried_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("bwrap", "setpriv", "unshare", "sh"):
        (tmp_path / tool).write_text("#!/bin/sh\necho no luck with $$ >&2\nexit 7\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no luck with") as caught:
        Sandbox.find()
    assert "bubblewrap with /" in str(caught.value)
    assert "unshare with /" in str(caught.value)


def test_without_a_python_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.eval.sandbox.ladder.pythons", list)
    monkeypatch.setattr("dlm.eval.sandbox.box.pythons", list)
    with pytest.raises(ValueError, match="no python3 in"):
        Sandbox.find()


def test_unsafe_says_that_nothing_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    box = Sandbox.find(unsafe=True, limits=LIMITS)
    assert box.rung == "unprotected"
    assert "UNPROTECTED" in box.statement()
    assert ran(box, "def f(x):\n    return x", "assert f(1) == 1").passed
    assert ran(box, "def f(x):\n    return x", "assert f(1) == 2").kind == "failed"
    assert ran(box, "def f(x):\n    while True: pass", "f(1)").kind == "timed out"


def test_unsafe_still_takes_the_best_there_is() -> None:
    best = next(Sandbox.each(), None)
    if best is None:
        pytest.skip("no protection works here")
    assert Sandbox.find(unsafe=True).rung == best.rung == Sandbox.find().rung


def test_unsafe_must_be_a_boolean() -> None:
    with pytest.raises(ValueError, match="unsafe must be True or False"):
        Sandbox.find(unsafe="no")  # type: ignore[arg-type]


def test_a_statement_names_every_kind_of_protection() -> None:
    for box in Sandbox.each(LIMITS):
        for word in ("network", "files", "environment", "processes", "CPU", "memory", "output"):
            assert word in box.statement()
        assert "not covered" in box.statement()
        assert max(map(len, box.statement().splitlines())) <= 130


@pytest.mark.parametrize("name", [BUBBLEWRAP, UNSHARE])
def test_root_becomes_another_user_for_every_sandbox(name: str) -> None:
    tools = {tool: f"/t/{tool}" for tool in ("bwrap", "setpriv", "unshare", "sh")}
    rung = Rung(name, Python("/usr/bin/python3"), tools, root=True)
    users = {
        word for _ in range(20) for word in rung.command(LIMITS) if word.startswith("--reuid=")
    }
    assert len(users) > 10
    assert all(61184 <= int(each.partition("=")[2]) < 65520 for each in users)
    line = rung.command(LIMITS)
    # The user changes in front of bubblewrap: only then are processes counted against it.
    assert line[0] == "/t/setpriv"
    assert "--no-new-privs" in line
    other = Rung(name, Python("/usr/bin/python3"), tools, root=False).command(LIMITS)
    assert not any("--reuid" in each for each in other)
    assert name == BUBBLEWRAP or any(each.startswith("--map-user=") for each in other)


def test_an_installation_of_the_user_is_shown_and_nothing_around_it() -> None:
    tools = {tool: f"/t/{tool}" for tool in ("bwrap", "setpriv", "unshare", "sh")}
    python = Python("/opt/my python/bin/python3", "/opt/my python")
    line = Rung(BUBBLEWRAP, python, tools, root=False).command(LIMITS)
    assert line[line.index("/opt/my python") - 1] == "--ro-bind"
    script = " ".join(Rung(UNSHARE, python, tools, root=False).command(LIMITS))
    assert "mount --bind '/opt/my python' './opt/my python'" in script


def test_a_python_around_the_home_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", str(Path.cwd().parent))
    assert all(not each.folder for each in pythons())
    assert all(os.access(each.path, os.X_OK) for each in pythons())


def test_rungs_come_best_first() -> None:
    names = [each.name for each in rungs()]
    assert names == sorted(names, key=[BUBBLEWRAP, UNSHARE].index)


# The process around it.


def watched(script: str, **limits: Any) -> Run:
    command = [sys.executable, "-S", "-c", script]
    return run(command, b"x" * 10, b"ready\n", Limits(**limits))


def test_output_is_read_up_to_a_cap() -> None:
    ended = watched("while True: print('x' * 9999)", output_bytes=5000)
    assert ended.stopped == WORDS
    assert len(ended.output) == 5000
    ended = watched(
        "import sys\nfor _ in range(99): sys.stderr.write('x' * 9999)", output_bytes=5000
    )
    assert (ended.stopped, len(ended.errors)) == ("", 5000)


def test_time_counts_from_the_start_of_a_program() -> None:
    script = "import time\nprint('ready', flush=True)\ntime.sleep(1000)"
    ended = watched(script, cpu_seconds=1, wall_seconds=1)
    assert ended.stopped == TIME
    assert ended.is_ready
    assert ended.process.returncode == -9


def test_memory_is_that_of_all_processes() -> None:
    script = (
        "import os, time\nprint('ready', flush=True)\n"
        "for _ in range(3): os.fork() or [bytearray(2**26), time.sleep(1000)]\n"
        "time.sleep(1000)"
    )
    ended = watched(script, memory_bytes=2**26)
    assert ended.stopped == SPACE
    assert ended.is_ready


def test_a_process_that_does_not_read_is_no_error() -> None:
    ended = run([sys.executable, "-S", "-c", "pass"], b"x" * 10**7, b"ready\n", Limits())
    assert not ended.is_ready
    assert ended.process.returncode == 0


def test_a_sandbox_that_does_not_start_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox.find(unsafe=True, limits=LIMITS)
    script = "import sys; print('passed: '); sys.stderr.write('no such\\nthing')"
    line = [sys.executable, "-S", "-c", script]
    monkeypatch.setattr(Rung, "command", lambda *_: line)
    with pytest.raises(DidNotStart, match=r"did not start .* no such thing"):
        box.run(Check("", ""))
    with pytest.raises(RuntimeError):
        box.run_all([Check("", "")] * 3)


def test_only_words_behind_the_nonce_count() -> None:
    nonce = secrets.token_hex(16)

    def said(text: str) -> tuple[str, str]:
        ended = watched("pass")
        ended.output = text.encode()
        return verdict(ended, nonce)

    assert said(f"{nonce} ready\n{nonce} passed: \n") == ("passed", "")
    assert said(f"{nonce} ready\n{nonce} failed: a: b\n") == ("failed", "a: b")
    for forged in (
        "passed: \n",
        f"{nonce} ready\npassed: \n",
        f"{nonce} ready\n{'0' * 32} passed: \n",
        f"{nonce} ready\n{nonce} passed: ",  # cut off
        f"{nonce} ready\n {nonce} passed: \n",
        f"{nonce} ready\n{nonce[:-1]} passed: \n",
    ):
        assert said(forged)[0] == "killed"


def test_processes_are_found_below_each_other() -> None:
    assert resident(os.getpid()) > 2**20
    assert resident(2**22 + 1) == 0
    assert children(2**22 + 1) == []
    ended = watched("print('x')")
    assert ended.process.pid not in descendants(os.getpid())


# The filter of system calls.


def filtered(machine: str, number: int, argument: int = 0, architecture: int = 0) -> int:
    """What a filter answers: an interpreter of the few instructions it is made of."""
    shown = {
        barrier.NUMBER: number,
        barrier.ARCHITECTURE: architecture or barrier.MACHINES[machine][1],
        barrier.FIRST_ARGUMENT: argument & 0xFFFFFFFF,
    }
    steps = list(struct.iter_unpack("=HBBI", barrier.program(machine)))
    held = at = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == barrier.RETURN:
            return int(value)
        if code == barrier.LOAD:
            held = shown[value]
            continue
        holds = {
            barrier.JUMP_EQUAL: held == value,
            barrier.JUMP_LEAST: held >= value,
            barrier.JUMP_BITS: bool(held & value),
        }[code]
        at += yes if holds else no


@pytest.mark.parametrize("machine", barrier.MACHINES)
def test_the_filter_refuses_what_it_lists_and_nothing_else(machine: str) -> None:
    column, _, socket, clone, clone3 = barrier.MACHINES[machine]
    refused = {numbers[column] for numbers in barrier.REFUSED.values()} - {-1}
    assert len(refused) == sum(numbers[column] >= 0 for numbers in barrier.REFUSED.values())
    for number in range(500):
        if number in (socket, clone, clone3):
            continue
        expected = barrier.REFUSE if number in refused else barrier.ALLOW
        assert filtered(machine, number) == expected, number
    assert [filtered(machine, socket, family) for family in (1, 2, 10, 16, 40)] == [
        barrier.ALLOW,
        *[barrier.REFUSE] * 4,
    ]
    assert filtered(machine, clone, 17) == barrier.ALLOW
    assert filtered(machine, clone, 0x10000000 | 17) == barrier.REFUSE
    assert filtered(machine, clone3) == barrier.ABSENT
    assert filtered(machine, 0, architecture=0x40000003) == barrier.REFUSE
    assert filtered(machine, barrier.X32 | 1) == barrier.REFUSE


# Small things of the judge.


def test_mentioned_finds_names_in_functions() -> None:
    code = compile("def check(c):\n    assert [poly(x) for x in c.y]\ncheck(f)", "t", "exec")
    assert {"poly", "check", "f"} <= judge.mentioned(code)


def test_programs_hold_their_modules_and_no_secret() -> None:
    for name in ("judge", "subject"):
        text = program(name).decode()
        compile(text, name, "exec")
        assert text.endswith(f"sys.modules['dlm.eval.sandbox.{name}'].main()")
    assert "raise_barrier" not in program("subject").decode()
