"""Regular languages as automata over bytes: what texts a rule allows, whatever the tokenizer.

Shapes: S states and a last one that nothing leads out of, 256 bytes.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.options import writable

META = frozenset(r"\.+*?()|[]{}^$#&-~")
"""What has to be escaped where a text stands for itself."""
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
        """The same language with fewest states (Moore 1956): those that no text tells apart merge.

        Kinds of states are told by sums of random words, and the result is proven: it leads where
        this one does.
        """
        kind, count = self.accepting.long(), 0
        # Bytes that lead alike from everywhere count once.
        letters = self.following.unique(dim=1)
        generator = torch.Generator().manual_seed(0)
        while True:
            size = len(letters), letters.shape[1] + 1
            words = torch.randint(-(1 << 62), 1 << 62, size, generator=generator)
            mark = words[kind, -1] + words[kind[letters], torch.arange(size[1] - 1)].sum(1)
            names, kind = mark.unique(return_inverse=True)
            if len(names) == count:
                break
            count = len(names)
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
        live = self.accepting
        while True:
            more = live | live[self.following].any(1)
            if torch.equal(more, live):
                return live
            live = more


def of_pattern(pattern: str) -> tuple[str, ByteAutomaton]:
    """A regular expression and its automaton, which takes whole texts.

    Raises:
        ValueError: it is none, it has what no automaton can follow, or its states take too much
            memory or time.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"regex must be a text, got {pattern!r}")
    told = read({"pattern": writable(pattern, "regex")}, "regex", pattern)
    if "error" in told:
        raise ValueError(
            "regex must be a regular expression of Rust's syntax, without anchors and without "
            f"looking around or back, got {shown(pattern)} ({told['error']})"
        )
    return automaton_of(told)


def of_schema(schema: Mapping[str, Any] | str) -> tuple[str, ByteAutomaton]:
    """A regular expression for the JSON that a schema allows, and its automaton.

    Raises:
        ValueError: it is none, it has what no regular expression can say, or as `of_pattern`.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema must be a JSON schema, got {schema!r} ({error})") from None
    told = read({"schema": writable(text, "json_schema")}, "json_schema", text)
    if "error" in told:
        raise ValueError(
            "json_schema must be a JSON schema that a regular expression can follow, "
            f"got {shown(text)} ({told['error']})"
        )
    return automaton_of(told)


def of_choice(texts: Sequence[str]) -> tuple[str, ByteAutomaton]:
    """A regular expression for one of some texts, and its automaton.

    Raises:
        ValueError: there is none, or one is no text.
    """
    listed = not isinstance(texts, str) and isinstance(texts, Sequence)
    if not listed or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"choice must be a list of texts, at least one, got {texts!r}")
    return of_pattern("|".join(f"({escaped(writable(text, 'choice'))})" for text in texts))


def escaped(text: str) -> str:
    """A regular expression for a text as it stands."""
    return "".join(f"\\{letter}" if letter in META else letter for letter in text)


def shown(text: str) -> str:
    """The begin of what was given, for messages."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def read(asked: Mapping[str, str], name: str, given: str) -> dict[str, Any]:
    """What the worker says of a pattern or a schema.

    Raises:
        ValueError: outlines-core is not installed, or it took too much memory or time.
    """
    if find_spec("outlines_core") is None:
        raise ValueError('constraints need outlines-core: pip install -e ".[constraints]"')
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
    limits = [str(MEMORY), str(SECONDS), str(STATES)]
    done = subprocess.run(
        [*command, *limits], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(
            f"{name} must be read in {SECONDS} seconds and {MEMORY >> 30} GiB of memory, "
            f"got {shown(given)}"
        )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def automaton_of(told: Mapping[str, Any]) -> tuple[str, ByteAutomaton]:
    """The pattern and the automaton that the worker tells of."""
    edges = torch.tensor(told["edges"], dtype=torch.int64).view(-1, 3)
    final = torch.tensor(told["final"], dtype=torch.int64)
    every = torch.cat((torch.tensor([told["start"]]), edges[:, 0], edges[:, 2], final))
    names, places = every.unique(return_inverse=True)
    start, source, target, ends = places.split((1, len(edges), len(edges), len(final)))
    following = torch.full((len(names) + 1, 256), len(names))
    following[source, edges[:, 1]] = target
    accepting = torch.zeros(len(names) + 1, dtype=torch.bool)
    accepting[ends] = True
    return told["pattern"], ByteAutomaton(following, accepting, int(start)).smallest()
