"""Options that hold the texts of `dlm generate` to a language."""

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
    decoding(metavar="PATTERN", help="Regular expression that each answer is a whole match of."),
]
Choice = Annotated[
    list[str] | None,
    decoding(metavar="TEXT", help="One of the texts that an answer may be; repeatable."),
]
JsonSchema = Annotated[
    Path | None,
    decoding(metavar="FILE", help="JSON schema that each answer keeps to."),
]


@dataclass(frozen=True, slots=True)
class Language:
    """What answers are held to, as a command line says it.

    Raises:
        ValueError: more than one way is given, or a file is not there.
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
        """The constraint, for a model; None where there is none.

        Raises:
            ValueError: it is no such language, or the model has no text in it.
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
