"""One sandbox from start to end: feed it, read limited output, watch it, and stop it."""

import os
import select
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dlm.eval.sandbox.ladder import ENVIRONMENT
from dlm.eval.sandbox.outcome import Limits

TICK = 0.1  # seconds between checks of the memory
START_SECONDS = 60.0  # time for a sandbox to start on a busy machine
DEATH_SECONDS = 10.0  # time for the kernel to remove what was killed
PAGE = os.sysconf("SC_PAGE_SIZE")
TIME, SPACE, WORDS = "time", "memory", "output"


@dataclass(slots=True)
class Run:
    """A running sandbox, and what it has produced."""

    process: subprocess.Popen[bytes]
    limits: Limits
    ready: bytes  # its output once it has started
    unread: memoryview  # input not sent yet
    output: bytes = b""
    errors: bytes = b""
    stopped: str = ""  # the limit that stopped it
    started: float = field(default_factory=time.monotonic)
    deadline: float = field(default_factory=lambda: time.monotonic() + START_SECONDS)
    is_ready: bool = False
    seconds: float = 0.0

    def watch(self) -> None:
        """Feed and read until it closes its output or reaches a limit."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for pipe, event in (
                (process.stdin, selectors.EVENT_WRITE),
                (process.stdout, selectors.EVENT_READ),
                (process.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, event)
            looked = time.monotonic()
            while not self.stopped and process.stdout in {
                key.fileobj for key in selector.get_map().values()
            }:
                for key, _ in selector.select(TICK):
                    more = self._feed() if key.fileobj is process.stdin else self._read(key.fd)
                    if not more:
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now > self.deadline:
                    self.stopped = TIME
                elif now > looked + TICK:
                    looked = now
                    self._look()

    def _feed(self) -> bool:
        """Write more input; returns whether there is more to write."""
        assert self.process.stdin is not None
        try:
            self.unread = self.unread[os.write(self.process.stdin.fileno(), self.unread) :]
        except BlockingIOError:
            return True
        except OSError:  # it has closed its input, and will have reported nothing
            self.unread = self.unread[:0]
        if not self.unread:
            with suppress(OSError):
                self.process.stdin.close()
        return bool(self.unread)

    def _read(self, pipe: int) -> bool:
        """Read more output; returns whether there may be more to read."""
        text = os.read(pipe, 2**16)
        most = self.limits.output_bytes
        assert self.process.stdout is not None
        if pipe != self.process.stdout.fileno():
            self.errors = (self.errors + text)[:most]
            return bool(text)
        self.output += text
        if len(self.output) > most:
            self.output, self.stopped = self.output[:most], WORDS
        if not self.is_ready and self.output.startswith(self.ready):
            self.is_ready = True
            self.deadline = time.monotonic() + self.limits.wall_seconds
        return bool(text)

    def _look(self) -> None:
        """Stop the sandbox if all its processes together use too much memory."""
        used = sum(map(resident, descendants(self.process.pid)))
        if used > 2 * self.limits.memory_bytes:
            self.stopped = SPACE

    def end(self) -> None:
        """Return once all processes are gone; kill them unless they have ended by themselves."""
        process = self.process
        if not self.stopped:
            with suppress(subprocess.TimeoutExpired):
                process.wait(DEATH_SECONDS if self.output else TICK)
        if process.returncode is None:
            kill_tree(process.pid)
        process.wait()
        self.seconds = time.monotonic() - self.started
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def run(command: list[str], feed: bytes, ready: bytes, limits: Limits) -> Run:
    """Start a command, feed it, and return when nothing of it is left.

    Raises:
        OSError: the command cannot be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    running = Run(process, limits, ready, memoryview(feed))
    try:
        running.watch()
    except BaseException:
        running.stopped = TIME  # an interrupt stops the sandbox too
        raise
    finally:
        running.end()
    return running


def children(pid: int) -> list[int]:
    """The processes that a process has started and not waited for."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All descendants of a process; in a process namespace, none can leave this tree."""
    found = children(pid)
    for each in found:  # grows during the loop
        found += children(each)
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process uses; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, and wait until the kernel has removed them.

    A sandbox with a process namespace is gone as soon as its first process is, a child of `pid`.
    """
    watched = []
    for each in descendants(pid):
        with suppress(OSError):
            watched.append(os.pidfd_open(each))
    try:
        for each in watched:
            with suppress(OSError):
                signal.pidfd_send_signal(each, signal.SIGKILL)
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        wait_for(watched, DEATH_SECONDS)
    finally:
        for each in watched:
            os.close(each)


def wait_for(processes: list[int], seconds: float) -> None:
    """Wait until all these process descriptors have ended, or until the time is over."""
    until = time.monotonic() + seconds
    for each in processes:
        left = max(0.0, until - time.monotonic())
        poll = select.poll()
        poll.register(each, select.POLLIN)
        poll.poll(left * 1000)
