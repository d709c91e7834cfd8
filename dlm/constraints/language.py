"""Regular languages as automata over bytes: what texts a rule allows, whatever the tokenizer.

Shapes: S states and a last one that nothing leads out of, 256 bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm.options import writable

META = frozenset(r"\.+*?()|[]{}^$#&-~")
"""What has to be escaped where a text stands for itself."""
ENDS = 256  # stands for the end of a text beside the bytes


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
        generator = torch.Generator().manual_seed(0)
        while True:
            words = torch.randint(-(1 << 62), 1 << 62, (len(kind), 257), generator=generator)
            mark = words[kind, 256] + words[kind[self.following], torch.arange(256)].sum(1)
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


def automaton_of(pattern: str) -> ByteAutomaton:
    """The automaton of a regular expression, which takes whole texts.

    Raises:
        ValueError: it is none, or it has what no automaton can follow.
    """
    core = outlines_core()
    letters = core.Vocabulary(ENDS, {bytes([byte]): [byte] for byte in range(256)})
    try:
        index = core.Index(pattern, letters)
    except ValueError as error:
        raise ValueError(
            "regex must be a regular expression of Rust's syntax, without anchors and without "
            f"looking around or back, got {pattern!r} ({error})"
        ) from None
    steps, final = index.get_transitions(), index.get_final_states()
    places: dict[int, int] = {}
    for state in (
        index.get_initial_state(),
        *steps,
        *(x for d in steps.values() for x in d.values()),
    ):
        places.setdefault(state, len(places))
    count = len(places)
    following = torch.full((count + 1, 256), count)
    for state, targets in steps.items():
        taken = {byte: places[target] for byte, target in targets.items() if byte != ENDS}
        following[places[state], list(taken)] = torch.tensor([*taken.values()], dtype=torch.int64)
    accepting = torch.zeros(count + 1, dtype=torch.bool)
    accepting[[places[state] for state in final]] = True
    return ByteAutomaton(following, accepting, 0).smallest()


def pattern_of_choice(texts: Sequence[str]) -> str:
    """A regular expression for one of some texts.

    Raises:
        ValueError: there is none, or one is no text.
    """
    listed = not isinstance(texts, str) and isinstance(texts, Sequence)
    if not listed or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"choice must be a list of texts, at least one, got {texts!r}")
    escaped = (
        "".join(f"\\{letter}" if letter in META else letter for letter in writable(text, "choice"))
        for text in texts
    )
    return "|".join(f"({text})" for text in escaped)


def pattern_of_schema(schema: Mapping[str, Any] | str) -> str:
    """A regular expression for the JSON that a schema allows.

    Members come in the order of the schema, with at most one space between signs.

    Raises:
        ValueError: it is no schema, or it has what no regular expression can say.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        pattern: str = outlines_core().json_schema.build_regex_from_schema(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema must be a JSON schema, got {text[:200]} ({error})") from None
    return pattern


def outlines_core() -> Any:
    """The package that reads regular expressions and schemas.

    Raises:
        ValueError: it is not installed; says how.
    """
    try:
        import outlines_core
        import outlines_core.json_schema
    except ImportError:
        raise ValueError(
            'constraints need outlines-core: pip install -e ".[constraints]"'
        ) from None
    return outlines_core
