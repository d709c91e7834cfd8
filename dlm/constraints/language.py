"""Regular languages as automata over bytes, independent of any tokenizer.

Shapes: S states, followed by a dead state that no transition leaves; 256 bytes.
"""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.constraints.lists import Lists
from dlm.constraints.minimal import kinds_of
from dlm.options import writable

MEMORY = 2 << 30  # bytes, for the process that compiles a pattern
SECONDS = 30  # CPU seconds, for the same process
STATES = 8192  # most states of an automaton over bytes; every position computes with all
SHOWN = 200  # most characters of a pattern in messages


@dataclass(frozen=True, slots=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over UTF-8 bytes."""

    following: Tensor  # int64 [S + 1, 256], next state after each byte; S is the dead state
    accepting: Tensor  # bool [S + 1]
    start: int

    def smallest(self) -> "ByteAutomaton":
        """The minimal automaton: equivalent states are merged.

        Equivalence classes are found by hashing with random words, and the result is then verified
        against the transitions of this automaton.

        Raises:
            RuntimeError: two states that are not equivalent were merged (a hash collision).
        """
        # Bytes with the same transitions from every state count once.
        kind = kinds_of(self.following.unique(dim=1), self.accepting)
        count = int(kind.max()) + 1
        # Renumber so that the dead state is last.
        kind = (kind - int(kind[-1]) - 1) % count
        one = torch.empty(count, dtype=torch.int64).scatter_(0, kind, torch.arange(len(kind)))
        following, accepting = kind[self.following[one]], self.accepting[one]
        same = torch.equal(following[kind], kind[self.following])
        if not (same and torch.equal(accepting[kind], self.accepting)):
            raise RuntimeError("two states of an automaton had one mark")
        return ByteAutomaton(following, accepting, int(kind[self.start]))

    @property
    def live(self) -> Tensor:
        """States from which an accepting state can be reached, bool [S + 1]."""
        letters = self.following.unique(dim=1)
        into, live = Lists.grouped(letters.flatten(), len(letters)), self.accepting.clone()
        more = live.nonzero()[:, 0]
        while len(more):
            source = (into.of(more)[0] // letters.shape[1]).unique()
            more = source[~live[source]]
            live[more] = True
        return live


def of_pattern(pattern: str) -> ByteAutomaton:
    """The minimal automaton of a regular expression that must match the whole text.

    Raises:
        ValueError: the pattern is invalid, no automaton can express it, or compiling it takes too
            much memory or time.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"regex must be a text, got {pattern!r}")
    told = read(writable(pattern, "regex"))
    if "error" in told:
        raise ValueError(
            "regex must be a regular expression of Rust's syntax, without anchors and without "
            f"looking around or back, got {shown(pattern)} ({told['error']})"
        )
    edges = torch.tensor(told["edges"], dtype=torch.int64).view(-1, 3)
    final = torch.tensor(told["final"], dtype=torch.int64)
    every = torch.cat((torch.tensor([told["start"]]), edges[:, 0], edges[:, 2], final))
    names, places = every.unique(return_inverse=True)
    start, source, target, ends = places.split((1, len(edges), len(edges), len(final)))
    following = torch.full((len(names) + 1, 256), len(names))
    following[source, edges[:, 1]] = target
    accepting = torch.zeros(len(names) + 1, dtype=torch.bool)
    accepting[ends] = True
    return ByteAutomaton(following, accepting, int(start)).smallest()


def shown(text: str) -> str:
    """The start of a text, quoted for messages."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def read(pattern: str) -> dict[str, Any]:
    """Compile a pattern in the worker process; returns its answer.

    Raises:
        ValueError: outlines-core is not installed, or the worker exceeded its memory or time.
    """
    if find_spec("outlines_core") is None:
        raise ValueError('constraints need outlines-core: pip install -e ".[constraints]"')
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
    limits = [str(MEMORY), str(SECONDS), str(STATES)]
    found = None
    with suppress(subprocess.TimeoutExpired):
        found = subprocess.run(
            [*command, *limits],
            input=pattern.encode(),
            capture_output=True,
            check=False,
            timeout=2 * SECONDS,  # twice the worker's CPU limit: the machine may be busy
        )
    if found is None or found.returncode:
        raise ValueError(
            f"regex must be read in {SECONDS} seconds and {MEMORY >> 30} GiB of memory, "
            f"got {shown(pattern)}"
        )
    told: dict[str, Any] = json.loads(found.stdout)
    return told
