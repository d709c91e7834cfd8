"""What a user holds texts to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlm.constraints.automaton import NEVER, Automaton
from dlm.constraints.compiling import compiled
from dlm.constraints.json_objects import NAME, json_objects
from dlm.constraints.language import (
    ByteAutomaton,
    of_choice,
    of_pattern,
    of_schema,
    shown,
)
from dlm.constraints.vocabulary import tree_of
from dlm.models.model import Model
from dlm.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A regular language that the generated text of every row is one of, for one vocabulary.

    Made once, in a second or so, and used for any number of generations. The text is whole: it
    ends within `gen_length` tokens, by a stop token or with the row. Two are equal if they hold
    the same vocabulary to the same pattern.
    """

    pattern: str  # a regular expression, or the name of a language without one
    vocabulary: str  # digest of the tokens
    usage: str  # how the model uses them
    automaton: Automaton

    @classmethod
    def regex(cls, model: Model, pattern: str) -> "Constraint":
        r"""Texts that a regular expression takes from their first character to their last.

        Args:
            model: whose tokens texts are made of.
            pattern: in the syntax of Rust's `regex`, without anchors and without looking around or
                back. `.` is anything but a newline, `\d` a digit of any script.

        Raises:
            ValueError: it is none, no text of the model's tokens is in it, it takes too many
                states, too much memory or more than 30 seconds, the model has no byte-level
                tokenizer, or outlines-core is missing.
        """
        return cls.of(model, of_pattern(pattern))

    @classmethod
    def choice(cls, model: Model, texts: Sequence[str]) -> "Constraint":
        """One of some texts.

        Raises:
            ValueError: there is none, or as `regex`.
        """
        return cls.of(model, of_choice(texts))

    @classmethod
    def json_schema(cls, model: Model, schema: Mapping[str, Any] | str) -> "Constraint":
        """JSON of a schema.

        Members come in the order of the schema, with at most one space between signs. What a
        regular expression cannot say is refused, or nested three times at most.

        Args:
            model: whose tokens texts are made of.
            schema: as a mapping, or as JSON.

        Raises:
            ValueError: it is none, or as `regex`.
        """
        return cls.of(model, of_schema(schema))

    @classmethod
    def json_object(cls, model: Model) -> "Constraint":
        """Any JSON object.

        Objects and arrays are nested three deep at most, with at most one space between signs.

        Raises:
            ValueError: the model has no byte-level tokenizer.
        """
        return cls.of(model, (NAME, json_objects()))

    @classmethod
    def of(cls, model: Model, language: tuple[str, ByteAutomaton]) -> "Constraint":
        """That of a pattern and its automaton over bytes.

        Raises:
            ValueError: as `regex`.
        """
        (pattern, by_bytes), tree, spec = language, tree_of(model), model.spec
        automaton = compiled(by_bytes, tree, spec)
        if automaton.left[automaton.start] >= NEVER:
            raise ValueError(
                f"a constraint must allow a text of the model's tokens, got {shown(pattern)}"
            )
        return cls(pattern, tree.digest, usage_of(spec), automaton)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same vocabulary to the same pattern."""
        if not isinstance(other, Constraint):
            return NotImplemented
        return self.name == other.name

    def __hash__(self) -> int:
        """Likewise."""
        return hash(self.name)

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.pattern, self.vocabulary, self.usage

    def __repr__(self) -> str:
        """Without the automaton."""
        return f"Constraint({shown(self.pattern)})"

    def check(
        self, model: Model, length: int, never: Collection[int], first: Collection[int]
    ) -> None:
        """Refuse rows that no text of the language fits.

        Args:
            model: what decodes them.
            length: tokens of the shortest row.
            never: tokens that are not sampled.
            first: tokens that are not sampled at the first position.

        Raises:
            ValueError: it was made for another vocabulary, no stop token is left, or the shortest
                text takes more tokens.
        """
        spec = model.spec
        # A network by itself is believed to have the tokenizer that the constraint was made with.
        digest = self.vocabulary if model.tokenizer is None else tree_of(model).digest
        if (digest, usage_of(spec)) != (self.vocabulary, self.usage):
            raise ValueError(
                f"constraint must be made for the model it is used with, got {self!r} of another"
            )
        banned = {*spec.banned, *never}
        if not set(spec.stop_ids) - banned:
            raise ValueError(
                "suppress_tokens must leave a stop token to end the text of a constraint with, "
                f"got {sorted(never)}"
            )
        least = self.automaton.without(banned).least({*banned, *first} if first else ())
        if least > length:
            shortest = "which no text has" if least >= NEVER else f"and its shortest text {least}"
            raise ValueError(
                f"gen_length must hold a text of the constraint, got {length} tokens for {self!r}, "
                f"{shortest}"
            )


def usage_of(spec: ModelSpec) -> str:
    """What an automaton rests on beside the tokens."""
    return (
        f"{spec.vocab_size} tokens, {spec.stop_ids} end a text, {(*spec.banned,)} are not sampled"
    )
