"""Functions that the answer to a chat may call.

They are passed to the chat template, which tells the model how to write a call. The format is that
of Qwen's templates, named after Hermes: a JSON object with a name and arguments between
`<tool_call>` and `</tool_call>`, or before the next `<tool_call>` if the closing mark was
forgotten. If a call is required, the answer is constrained to that format.
"""

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from dlm.constraints.expressions import (
    NODES,
    Either,
    Repeated,
    automaton_of,
    nodes_of,
    series,
    text,
)
from dlm.constraints.language import ByteAutomaton
from dlm.constraints.schemas import expression_of
from dlm.models.model import Model
from dlm.options import boolean, writable
from dlm.prompts import tokenizer_of
from dlm.serving import fields

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"
OTHER: Final = "<function="
"""In templates whose calls stand between the same two marks but are not JSON."""
MOST: Final = 128  # functions of a request
LAST: Final = re.compile(rf"{END}|(?={BEGIN})")
NAME: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a chat, and which calls it asks for."""

    listed: list[Any]  # as the template takes them
    several: bool  # whether an answer may hold more than one call
    held: tuple[int, ...] = ()  # indices of those that it must call; empty if it is free


def read_tools(body: fields.Body) -> Tools | None:
    """The functions that an answer may call; None if there are none.

    Raises:
        ValueError: one is not a function, or calls are asked for that cannot be enforced.
    """
    listed, choice = body.get("tools", []), body.get("tool_choice", "auto")
    several = boolean("parallel_tool_calls", body.get("parallel_tool_calls", True))
    if not isinstance(listed, list) or len(listed) > MOST:
        raise ValueError(f"tools must be a list of at most {MOST} functions, got {listed!r}")
    names: set[str] = set()
    for number, tool in enumerate(listed):
        check_tool(tool, f"tools[{number}]")
        name = tool["function"]["name"]
        if name in names:
            raise ValueError(f"tools[{number}].function.name must be of one function, got {name!r}")
        names.add(name)
    held = read_choice(choice, listed)
    if not listed or choice == "none":
        return None
    if choice == "auto":
        refuse_strict(listed)
    return Tools(listed, several and choice in ("auto", "required"), held)


def read_choice(choice: Any, listed: list[Any]) -> tuple[int, ...]:
    """Indices of the functions that an answer must call; empty if it may be anything.

    Raises:
        ValueError: it is not a choice, or names none of these functions.
    """
    if choice in ("auto", "none"):
        return ()
    names = [tool["function"]["name"] for tool in listed]
    told = choice.get("function") if isinstance(choice, dict) else None
    name = told.get("name") if isinstance(told, dict) else None
    named = isinstance(name, str) and choice.get("type") == "function"
    if choice != "required" and not named:
        raise ValueError(
            "tool_choice must be 'auto', 'none', 'required' or "
            f'{{"type": "function", "function": {{"name": ...}}}}, got {choice!r}'
        )
    held = [place for place, each in enumerate(names) if not named or each == name]
    if not held:
        raise ValueError(f"tool_choice must be of a function in tools, got {choice!r}")
    return tuple(held)


def refuse_strict(listed: list[Any]) -> None:
    """Refuse functions whose arguments would have to follow their schema in a free answer.

    Raises:
        ValueError: a function is strict.
    """
    for number, tool in enumerate(listed):
        if tool["function"].get("strict"):
            raise fields.unsupported("strict", True, f"tools[{number}].function.strict")


def check_tool(tool: Any, where: str) -> None:
    """Refuse what is not a function.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ValueError(f'{where} must be {{"type": "function", "function": ...}}, got {tool!r}')
    told = tool.get("function")
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise ValueError(f"{where}.function must be an object with a name, got {told!r}")
    if not NAME.fullmatch(told["name"]):
        raise ValueError(
            f"{where}.function.name must be 1 to 64 letters, digits and _.-, got {told['name']!r}"
        )
    for name, kind, said in (("description", str, "a text"), ("parameters", dict, "an object")):
        if told.get(name) is not None and not isinstance(told[name], kind):
            raise ValueError(f"{where}.function.{name} must be {said}, got {told[name]!r}")
    if told.get("strict") is not None:
        boolean(f"{where}.function.strict", told["strict"])
    writable(json.dumps(tool, ensure_ascii=False), where)


def told_of_calls(tools: Tools) -> str:
    """The calls that an answer is constrained to, serialised for `calls_of`.

    Raises:
        ValueError: parameters are nested too deep.
    """
    held = [(place, tools.listed[place]["function"]) for place in tools.held]
    told = [(place, each["name"], each.get("parameters") or {}) for place, each in held]
    try:
        return json.dumps([tools.several, told])
    except RecursionError:
        raise ValueError("tools must be functions, got parameters nested too deep") from None


def calls_of(told: str) -> ByteAutomaton:
    """An automaton for calls as templates write them, with arguments of each function's schema.

    Raises:
        ValueError: a schema cannot be followed, or all of them together have too many parts.
    """
    several, functions = json.loads(told)
    ways, nodes = [], 0
    for place, name, parameters in functions:
        where = f"tools[{place}].function.parameters"
        if parameters.get("type", "object") != "object":
            raise ValueError(f"{where} must be of type 'object', got {parameters['type']!r}")
        try:
            arguments = expression_of({"type": "object", **parameters})
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{where} must be one that can be followed ({error})") from None
        nodes += nodes_of(arguments)  # before others are read: each is bounded only by itself
        if nodes > NODES:
            raise ValueError(f"tools must be of fewer parts: they come to more than {NODES} nodes")
        ways.append(series(text(f'"{name}", "arguments": '), arguments))
    call = series(text(f'{BEGIN}\n{{"name": '), Either(tuple(ways)), text(f"}}\n{END}"))
    more = Repeated(series(text("\n"), call), 0, None if several else 0)
    try:
        return automaton_of(series(call, more))
    except ValueError as error:
        raise ValueError(f"tools must be of fewer parts: {error}") from None


def check_template(model: Model) -> None:
    """Refuse functions if the chat template has no such calls.

    Raises:
        ValueError: it has none.
    """
    template = tokenizer_of(model, "a chat prompt").chat_template
    if not isinstance(template, str) or BEGIN not in template or OTHER in template:
        raise ValueError(
            f"tools must go with a chat template that has calls as JSON between {BEGIN} and {END}, "
            "and this model's has not"
        )


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls of an earlier message, with arguments as templates take them.

    Raises:
        ValueError: they are not calls.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of calls, got {value!r}")
    return [read_call(call, f"{where}[{number}]") for number, call in enumerate(value)]


def read_call(call: Any, where: str) -> dict[str, Any]:
    """Read one call; arguments that are JSON text are parsed."""
    told = call.get("function") if isinstance(call, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise ValueError(f"{where} must have a function with a name and arguments, got {call!r}")
    arguments = told.get("arguments") or "{}"
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}.function.arguments must be the text of a JSON object, got {arguments!r}"
        )
    made = {"type": "function", "function": {"name": told["name"], "arguments": found}}
    writable(json.dumps(made, ensure_ascii=False), where)
    return made


@dataclass(frozen=True, slots=True)
class Called:
    """A call in an answer."""

    number: int  # index in the choice
    name: str
    arguments: str  # JSON
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


class CallReader:
    """Extracts calls from the text of a choice, which arrives in pieces.

    What is not a call stays text, including the marks around it. Space before calls and after the
    last one is dropped. So is everything after the first call, unless there may be several.
    """

    def __init__(self, *, several: bool) -> None:
        self.several = several
        self.calls: list[Called] = []
        self.held = ""  # text that may be part of a call
        self.searched = 0  # characters of it in which no call ends

    def push(self, text: str, *, over: bool) -> tuple[str, list[Called]]:
        """Add text; returns what is not part of a call, and the calls that have ended.

        Nothing is held back once the choice is `over`.
        """
        self.held += text
        said, made = [], len(self.calls)
        while not self.full and (begin := self.held.find(BEGIN)) >= 0:
            first = begin + len(BEGIN)
            end = LAST.search(self.held, max(first, self.searched))
            self.searched = max(0, len(self.held) - len(END))
            if not (end or over):
                break
            last, rest = (end.start(), end.end()) if end else (len(self.held),) * 2
            call = self.read(self.held[first:last])
            said.append(self.held[:begin].rstrip() if call else self.held[:rest])
            self.held, self.searched = self.held[rest:], 0
        said.append(self.last(over=over))
        return "".join(said), self.calls[made:]

    @property
    def full(self) -> bool:
        """Whether everything after what was read is dropped."""
        return bool(self.calls) and not self.several

    def last(self, *, over: bool) -> str:
        """Of text without a complete call, the part that certainly belongs to none."""
        held, begin = self.held, self.held.find(BEGIN)
        if self.full:
            sure, self.held = "", ""
        elif over:
            sure, self.held = held.rstrip() if self.calls else held, ""
        else:
            end = surely(held) if begin < 0 else len(held[:begin].rstrip())
            sure, self.held = held[:end], held[end:]
            self.searched = max(0, self.searched - end)
        return sure

    def read(self, inside: str) -> bool:
        """Record a call; returns whether the text is one."""
        try:
            told = json.loads(inside)
            name, arguments = told["name"], told.get("arguments", {})
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return False
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return False
        self.calls.append(Called(len(self.calls), name, written))
        return True


def surely(text: str) -> int:
    """Number of characters before what may be the beginning of a call and space in front of it."""
    for length in range(min(len(text), len(BEGIN) - 1), 0, -1):
        if BEGIN.startswith(text[-length:]):
            return len(text[:-length].rstrip())
    return len(text.rstrip())
