r"""Mathematical equality of two answers: math-verify in a separate process.

Evaluating `9^{9^{9}}` can take forever inside a single big-integer operation, where no signal
handler runs. The process therefore has limits on CPU time and memory, dies when it reaches one, and
is started again. This file is also the script of that process; it imports nothing from `dlm`.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable

SECONDS = 5.0  # of CPU time for one pair
START_SECONDS = 120.0  # for imports
MEMORY = 4 << 30  # bytes of address space


class Verifier:
    """A process that compares pairs, started with the first one."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def same(self, gold: str, answer: str) -> bool | None:
        r"""Whether two LaTeX texts, such as `\boxed{3}`, hold equal answers; None if it gave up.

        Raises:
            ValueError: math-verify is not installed.
            RuntimeError: math-verify is installed, but does not work.
        """
        with self._lock:
            process = self._started()
            try:
                print(json.dumps([gold, answer]), file=process.stdin, flush=True)
                line = process.stdout.readline() if process.stdout else ""
            except BrokenPipeError:
                line = ""
            if line.endswith("\n"):
                return bool(json.loads(line))
            status = process.wait()  # its output has ended, so it is about to exit
            self._stop()
            if status >= 0:  # it exited by itself: the pair is not to blame
                raise RuntimeError("math-verify cannot be used: see python -c 'import math_verify'")
            return None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._stop()  # killed by something else
        if self._process is None:
            if importlib.util.find_spec("math_verify") is None:
                raise ValueError('comparing answers needs math-verify: pip install -e ".[eval]"')
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(self.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None and process.stdout is not None:
                process.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.kill()
            process.wait()


@functools.cache
def verifier() -> Verifier:
    """The verifier of this program, closed at exit."""
    found = Verifier()
    atexit.register(found.close)
    return found


def serve(seconds: float) -> None:
    """Answer the pairs on stdin, one line each."""
    import os
    import resource
    import signal

    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print is not an answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, START_SECONDS)  # its signal ends the process
    compare = _comparison()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = compare(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), file=answers, flush=True)


def _comparison() -> Callable[[str, str], bool]:
    """The function that compares a pair; imports math-verify."""
    from math_verify import (  # type: ignore[import-untyped]
        ExprExtractionConfig,
        LatexExtractionConfig,
        parse,
        verify,
    )

    latex = [LatexExtractionConfig()]
    either = [LatexExtractionConfig(), ExprExtractionConfig()]

    def compare(gold: str, answer: str) -> bool:
        try:
            wanted = parse(gold, latex, parsing_timeout=None)
            told = parse(answer, either, parsing_timeout=None)
            return bool(verify(wanted, told, timeout_seconds=None))
        except Exception:
            return False

    return compare


if __name__ == "__main__":
    serve(float(sys.argv[1]))
