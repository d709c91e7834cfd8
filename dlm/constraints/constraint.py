"""The public constraint: a regular language for the generated text."""

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
    """A regular language that the generated text of every row must belong to, for one vocabulary.

    Compile it once, in a second or so, and use it for any number of generations. The text is always
    complete: it ends within `gen_length` tokens, by a stop token or at the end of the row. Two
    constraints are equal if they have the same pattern and the same vocabulary.
    """

    name: str  # a regular expression, or a unique name for another language
    vocabulary: str  # digest of the tokens
    usage: str  # how the model uses the tokens
    automaton: Automaton

    @classmethod
    def regex(cls, model: Model, pattern: str) -> "Constraint":
        r"""Texts that match a regular expression from first to last character.

        Args:
            model: the model whose tokens make up the text.
            pattern: in the syntax of Rust's `regex`, without anchors, lookaround or backreferences.
                `.` matches anything but a newline, `\d` a digit of any script.

        Raises:
            ValueError: the pattern is invalid, compiling it takes too much memory or more than 30
                seconds, outlines-core is missing, or as for `of`.
        """
        return cls.of(model, pattern, of_pattern(pattern))

    @classmethod
    def choice(cls, model: Model, texts: Sequence[str]) -> "Constraint":
        """One of the given texts.

        Raises:
            ValueError: there is no text, or as for `of`.
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

        Members come in the order of the schema, with at most one space between JSON tokens. Members
        that the schema does not name are never generated. Unsupported keywords are refused
        (`dlm.constraints.schemas`), and recursive references nest at most three deep.

        Args:
            model: the model whose tokens make up the text.
            schema: a mapping, JSON text, or a pydantic model class.

        Raises:
            ValueError: the schema is invalid or unsupported, or as for `of`.
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

        Objects and arrays nest at most three deep, with at most one space between JSON tokens.

        Raises:
            ValueError: as for `of`.
        """
        return cls.of(model, "*any JSON object", automaton("json_object", any_object()))

    @classmethod
    def of(cls, model: Model, name: str, language: ByteAutomaton) -> "Constraint":
        """The constraint of any automaton over bytes.

        Args:
            model: the model whose tokens make up the text.
            name: of the language; constraints with the same name are taken to be the same. A
                regular expression is its own name; other names begin with "*", as no expression
                does.
            language: the automaton.

        Raises:
            ValueError: the model's tokens can spell no text of the language, the automaton has too
                many states, or the model has no byte-level tokenizer.
        """
        tree, spec = tree_of(model), model.spec
        made = compiled(language, tree, spec)
        if made.left[made.start] >= NEVER:
            raise ValueError(
                f"a constraint must allow a text of the model's tokens, got {shown(name)}"
            )
        return cls(name, tree.digest, usage_of(spec), made)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same pattern and the same vocabulary."""
        if not isinstance(other, Constraint):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        """A hash consistent with equality."""
        return hash(self.key)

    @property
    def key(self) -> tuple[str, str, str]:
        """What equality compares."""
        return self.name, self.vocabulary, self.usage

    def __repr__(self) -> str:
        """The name, without the automaton."""
        return f"Constraint({shown(self.name)})"

    def check(
        self, model: Model, length: int, never: Collection[int], first: Collection[int]
    ) -> None:
        """Refuse rows that are too short for any text of the language.

        Args:
            model: the model that decodes the rows.
            length: tokens of the shortest row.
            never: tokens that are never sampled.
            first: tokens that are never sampled at the first position.

        Raises:
            ValueError: the constraint was made for another vocabulary, every stop token is
                suppressed, or the shortest text of the language has more than `length` tokens.
        """
        spec = model.spec
        # Without a tokenizer, trust that the constraint was made with the right one.
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
    """What an automaton depends on besides the token bytes."""
    return (
        f"{spec.vocab_size} tokens, {spec.stop_ids} end a text, {(*spec.banned,)} are not sampled"
    )


def automaton(name: str, expression: Expression) -> ByteAutomaton:
    """The automaton of an expression.

    Raises:
        ValueError: it is too large; the message names the option.
    """
    try:
        return automaton_of(expression)
    except ValueError as error:
        raise ValueError(f"{name} must be of fewer parts: {error}") from None
