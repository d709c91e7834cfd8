"""Reads the rule that constrains an answer, from the fields of OpenAI's and vLLM's clients."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dlm.options import boolean
from dlm.serving import fields
from dlm.serving.tools import Tools, told_of_calls

LONGEST: Final = 1 << 16  # characters of an expression, a schema, or all texts of a choice
MOST_TEXTS: Final = 1000  # of a choice
FORMATS: Final = ("text", "json_object", "json_schema")
OF_SCHEMAS: Final = ("name", "description", "schema", "strict")


@dataclass(frozen=True, slots=True)
class Rule:
    """What constrains an answer."""

    kind: str  # "regex", "choice", "json_schema", "json_object" or "calls"
    text: str  # the expression; JSON for other kinds
    field: str  # that states the rule


def read_rule(body: fields.Body, tools: Tools | None) -> Rule | None:
    """The rule that constrains the answers; None if there is none.

    Raises:
        ValueError: a field breaks its rule, or two fields constrain the answers.
    """
    found = {name: read(body[name], name) for name, read in READERS.items() if name in body}
    if tools is not None and tools.held:
        text = bounded(told_of_calls(tools), "tools")
        found["tool_choice"] = Rule("calls", text, "tools")
    rules = {name: rule for name, rule in found.items() if rule is not None}
    if len(rules) > 1:
        one, two = list(rules)[:2]
        raise ValueError(f"{one} must stand without {two}: an answer is held to one thing")
    return next(iter(rules.values()), None)


def read_format(value: Any, name: str) -> Rule | None:
    """Read `response_format`."""
    told = stated(value, name)
    kind = told.get("type")
    if kind == "structural_tag":
        raise fields.unsupported(kind, value, name)
    if kind not in FORMATS:
        raise ValueError(f"{name}.type must be one of {', '.join(FORMATS)}, got {kind!r}")
    for key in told:
        fields.known_name(f"option of {name}", key, ("type", "json_schema"))
    if kind == "json_schema":
        return read_named(told.get("json_schema"), f"{name}.json_schema")
    if "json_schema" in told:
        raise ValueError(f"{name}.json_schema must go with type 'json_schema', got {kind!r}")
    return Rule("json_object", "", name) if kind == "json_object" else None


def read_named(value: Any, name: str) -> Rule:
    """Read a named schema; only the schema itself has an effect."""
    told = stated(value, name)
    for key in told:
        fields.known_name(f"option of {name}", key, OF_SCHEMAS)
    for key in ("name", "description"):
        if not isinstance(told.get(key, ""), str):
            raise ValueError(f"{name}.{key} must be a text, got {told[key]!r}")
    boolean(f"{name}.strict", told.get("strict", True))
    if not isinstance(told.get("schema"), dict):
        raise ValueError(f"{name}.schema must be an object, got {told.get('schema')!r}")
    return read_schema(told["schema"], f"{name}.schema")


def read_structured(value: Any, name: str) -> Rule:
    """Read vLLM's `structured_outputs`."""
    told = stated(value, name)
    for key in told:
        if key in ("grammar", "structural_tag"):
            raise fields.unsupported(key, told[key], f"{name}.{key}")
        fields.known_name(f"option of {name}", key, STRUCTURED)
    if len(told) != 1:
        got = ", ".join(told) or "none"
        raise ValueError(f"{name} must have exactly one of {', '.join(STRUCTURED)}, got {got}")
    ((key, given),) = told.items()
    return STRUCTURED[key](given, f"{name}.{key}")


def read_schema(value: Any, name: str) -> Rule:
    """Read a schema, which may be given as JSON text."""
    if not isinstance(value, str | dict):
        raise ValueError(f"{name} must be a JSON schema or the text of one, got {value!r}")
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        raise ValueError(f"{name} must be a JSON schema, got one nested too deep") from None
    return Rule("json_schema", bounded(text, name), name)


def read_regex(value: Any, name: str) -> Rule:
    """Read a regular expression."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a regular expression, got {value!r}")
    return Rule("regex", bounded(value, name), name)


def read_choice(value: Any, name: str) -> Rule:
    """Read a choice of texts."""
    listed = isinstance(value, list) and 0 < len(value) <= MOST_TEXTS
    if not listed or not all(isinstance(text, str) for text in value):
        got = f"{len(value)} of them" if isinstance(value, list) and value else repr(value)
        raise ValueError(f"{name} must be a list of 1 to {MOST_TEXTS} texts, got {got}")
    bounded("".join(value), name)
    return Rule("choice", json.dumps(value), name)


def stated(value: Any, name: str) -> dict[str, Any]:
    """An object without entries that are null."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {value!r}")
    return {key: told for key, told in value.items() if told is not None}


def bounded(text: str, name: str) -> str:
    """Check that a text is not too long."""
    if len(text) > LONGEST:
        raise ValueError(f"{name} must be at most {LONGEST} characters, got {len(text)}")
    return text


STRUCTURED: Final[Mapping[str, Callable[[Any, str], Rule]]] = {
    "json": read_schema,
    "regex": read_regex,
    "choice": read_choice,
}
READERS: Final[Mapping[str, Callable[[Any, str], Rule | None]]] = {
    "response_format": read_format,
    "structured_outputs": read_structured,
    **{f"guided_{name}": read for name, read in STRUCTURED.items()},
}
"""Fields that constrain an answer, and how to read them."""
