"""What a user holds texts to."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from dlm.constraints.automaton import NEVER, Automaton
from dlm.constraints.compiling import compiled
from dlm.constraints.expressions import Either, Expression, automaton_of, text
from dlm.constraints.language import ByteAutomaton, of_pattern, shown
from dlm.constraints.schemas import expression_of
from dlm.constraints.texts import any_object
from dlm.constraints.vocabulary import tree_of
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import writable


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A regular language that the generated text of every row is one of, for one vocabulary.

    Made once, in a second or so, and used for any number of generations. The text is whole: it
    ends within `gen_length` tokens, by a stop token or with the row. Two are equal if they hold
    the same vocabulary to the same pattern.
    """

    name: str  # a regular expression, or what tells another language from all others
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
            ValueError: it is none, it takes too much memory or more than 30 seconds, outlines-core
                is missing, or as `of`.
        """
        return cls.of(model, pattern, of_pattern(pattern))

    @classmethod
    def choice(cls, model: Model, texts: Sequence[str]) -> "Constraint":
        """One of some texts.

        Raises:
            ValueError: there is none, or as `of`.
        """
        listed = not isinstance(texts, str) and isinstance(texts, Sequence)
        if not listed or not texts or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"choice must be a list of texts, at least one, got {texts!r}")
        for each in texts:
            writable(each, "choice")
        ways = Either(tuple(map(text, texts)))
        return cls.of(model, f"*one of {json.dumps(list(texts))}", automaton("choice", ways))

    @classmethod
    def json_schema(cls, model: Model, schema: Mapping[str, Any] | str | type) -> "Constraint":
        """JSON that a schema allows.

        Members come in the order of the schema, with at most one space between signs; members that
        it does not name are not made up. Keywords that are not followed are refused
        (`dlm.constraints.schemas`), and what names itself is nested three times at most.

        Args:
            model: whose tokens texts are made of.
            schema: as a mapping, as JSON, or a model of pydantic, which has one.

        Raises:
            ValueError: it is none, or as `of`.
        """
        described = getattr(schema, "model_json_schema", None)
        try:
            schema = schema if described is None else described()
            given = json.loads(schema) if isinstance(schema, str) else schema
            name, ways = f"*JSON of {json.dumps(given)}", expression_of(given)
        except (TypeError, ValueError, RecursionError) as error:
            told = shown(schema) if isinstance(schema, str) else short(schema)
            raise ValueError(
                f"json_schema must be one that can be followed, got {told} ({error})"
            ) from None
        return cls.of(model, name, automaton("json_schema", ways))

    @classmethod
    def json_object(cls, model: Model) -> "Constraint":
        """Any JSON object.

        Objects and arrays are nested three deep at most, with at most one space between signs.

        Raises:
            ValueError: as `of`.
        """
        return cls.of(model, "*any JSON object", automaton("json_object", any_object()))

    @classmethod
    def of(cls, model: Model, name: str, language: ByteAutomaton) -> "Constraint":
        """That of any automaton over bytes.

        Args:
            model: whose tokens texts are made of.
            name: of the language: constraints of the same name are taken for the same. That of an
                expression is the expression; others begin with "*", as none does.
            language: the automaton.

        Raises:
            ValueError: no text of the model's tokens is in it, it takes too many states, or the
                model has no byte-level tokenizer.
        """
        tree, spec = tree_of(model), model.spec
        made = compiled(language, tree, spec)
        if made.left[made.start] >= NEVER:
            raise ValueError(
                f"a constraint must allow a text of the model's tokens, got {shown(name)}"
            )
        return cls(name, tree.digest, usage_of(spec), made)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same vocabulary to the same pattern."""
        if not isinstance(other, Constraint):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        """Likewise."""
        return hash(self.key)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.name, self.vocabulary, self.usage

    def __repr__(self) -> str:
        """Without the automaton."""
        return f"Constraint({shown(self.name)})"

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


def automaton(name: str, expression: Expression) -> ByteAutomaton:
    """That of an expression.

    Raises:
        ValueError: it is too large; names the option.
    """
    try:
        return automaton_of(expression)
    except ValueError as error:
        raise ValueError(f"{name} must be of fewer parts: {error}") from None
