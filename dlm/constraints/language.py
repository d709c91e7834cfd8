"""Regular languages as automata over bytes: what texts a rule allows, whatever the tokenizer.

Shapes: S states and a last one that nothing leads out of, 256 bytes.
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

MEMORY = 2 << 30  # bytes, of what reads a pattern
SECONDS = 30  # likewise
STATES = 8192  # of an automaton over bytes: each position of a text looks at all of them
SHOWN = 200  # characters of a pattern in messages


@dataclass(frozen=True, slots=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over the bytes of UTF-8, each state with a text of its own."""

    following: Tensor  # int64 [S + 1, 256], the state behind each byte; S where there is no text
    accepting: Tensor  # bool [S + 1]
    start: int

    def smallest(self) -> "ByteAutomaton":
        """The same language with fewest states: those that no text tells apart merge.

        Kinds of states are told by sums of random words, and the result is proven: it leads where
        this one does.
        """
        # Bytes that lead alike from everywhere count once.
        kind = kinds_of(self.following.unique(dim=1), self.accepting)
        count = int(kind.max()) + 1
        # The dead state last.
        kind = (kind - int(kind[-1]) - 1) % count
        one = torch.empty(count, dtype=torch.int64).scatter_(0, kind, torch.arange(len(kind)))
        following, accepting = kind[self.following[one]], self.accepting[one]
        same = torch.equal(following[kind], kind[self.following])
        if not (same and torch.equal(accepting[kind], self.accepting)):
            raise RuntimeError("two states of an automaton had one mark")
        return ByteAutomaton(following, accepting, int(kind[self.start]))

    @property
    def live(self) -> Tensor:
        """States from which a text can still be ended, bool [S + 1]."""
        letters = self.following.unique(dim=1)
        into, live = Lists.grouped(letters.flatten(), len(letters)), self.accepting.clone()
        more = live.nonzero()[:, 0]
        while len(more):
            source = (into.of(more)[0] // letters.shape[1]).unique()
            more = source[~live[source]]
            live[more] = True
        return live


def of_pattern(pattern: str) -> ByteAutomaton:
    """The automaton of a regular expression, which takes whole texts.

    Raises:
        ValueError: it is none, it has what no automaton can follow, or its states take too much
            memory or time.
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
    """The begin of what was given, for messages."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def read(pattern: str) -> dict[str, Any]:
    """What the worker says of a pattern.

    Raises:
        ValueError: outlines-core is not installed, or it took too much memory or time.
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
            timeout=2 * SECONDS,  # on a busy machine; of its own it may use half of that
        )
    if found is None or found.returncode:
        raise ValueError(
            f"regex must be read in {SECONDS} seconds and {MEMORY >> 30} GiB of memory, "
            f"got {shown(pattern)}"
        )
    told: dict[str, Any] = json.loads(found.stdout)
    return told
