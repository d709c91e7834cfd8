"""Options of `dlm generate` that constrain its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dlm.cli.inputs import decode
from dlm.cli.options import decoding
from dlm.options import file

if TYPE_CHECKING:
    from dlm.constraints.constraint import Constraint
    from dlm.models.model import Model

Regex = Annotated[
    str | None,
    decoding(metavar="PATTERN", help="Regular expression that each answer must match as a whole."),
]
Choice = Annotated[
    list[str] | None,
    decoding(metavar="TEXT", help="A text that an answer may be; repeatable."),
]
JsonSchema = Annotated[
    Path | None,
    decoding(metavar="FILE", help="JSON schema that each answer must follow."),
]


@dataclass(frozen=True, slots=True)
class Language:
    """The constraint on answers, as given on the command line.

    Raises:
        ValueError: more than one kind of constraint is given, or a file does not exist.
    """

    regex: str | None
    choice: Sequence[str] | None
    json_schema: Path | None

    def __post_init__(self) -> None:
        given = [
            f"--{name.replace('_', '-')}"
            for name in self.__slots__
            if getattr(self, name) not in (None, [])
        ]
        if len(given) > 1:
            raise ValueError(f"answers are held to one language: give one of {' and '.join(given)}")
        if self.json_schema is not None:
            file("--json-schema", self.json_schema)

    def constraint(self, model: "Model") -> "Constraint | None":
        """Compile the constraint for a model; None if there is none.

        Raises:
            ValueError: the constraint is invalid, or no text of the model's tokens matches it.
        """
        from dlm.constraints.constraint import Constraint

        if self.regex is not None:
            return Constraint.regex(model, self.regex)
        if self.choice:
            return Constraint.choice(model, self.choice)
        if self.json_schema is not None:
            written = decode(self.json_schema.read_bytes(), "--json-schema")
            return Constraint.json_schema(model, written)
        return None
