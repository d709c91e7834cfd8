"""Functions that the answer to a chat may call.

They go to the chat template, which tells the model how a call is written. Read is the form of
Qwen's templates, named after Hermes: a JSON object with a name and arguments between `<tool_call>`
and `</tool_call>`, or the next `<tool_call>` where the former was forgotten. Where a call is asked
for, the answer is held to that form.
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
"""In templates whose calls stand between the same two, and are no JSON."""
MOST: Final = 128  # functions of a request
LAST: Final = re.compile(rf"{END}|(?={BEGIN})")
NAME: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a chat says of functions."""

    listed: list[Any]  # as the template takes them
    several: bool  # whether an answer may hold more than one call
    held: tuple[int, ...] = ()  # places of those of which it must be calls; none where it is free


def read_tools(body: fields.Body) -> Tools | None:
    """The functions that an answer may call; None for none.

    Raises:
        ValueError: one is none, or calls are asked for that nothing here could enforce.
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
    """Places of the functions of which an answer must be calls; none where it may be anything.

    Raises:
        ValueError: it is no choice, or none of these functions.
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
    """Refuse functions whose arguments would have to be of their schema in a free answer.

    Raises:
        ValueError: one is strict.
    """
    for number, tool in enumerate(listed):
        if tool["function"].get("strict"):
            raise fields.unsupported("strict", True, f"tools[{number}].function.strict")


def check_tool(tool: Any, where: str) -> None:
    """Refuse what is no function.

    Raises:
        ValueError: it is none.
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
    """The calls that an answer is held to, as `calls_of` reads them.

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
    """Calls as templates have them, each with arguments of its schema.

    Raises:
        ValueError: a schema cannot be followed, or all of them have too many parts.
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
        nodes += nodes_of(arguments)  # before others are read: each has a bound of its own
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
    """Refuse functions where the chat template has no such calls.

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
    """Calls of an earlier message, their arguments as templates take them.

    Raises:
        ValueError: they are no calls.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of calls, got {value!r}")
    return [read_call(call, f"{where}[{number}]") for number, call in enumerate(value)]


def read_call(call: Any, where: str) -> dict[str, Any]:
    """One call, which has its arguments as a text of JSON."""
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

    number: int  # of the choice
    name: str
    arguments: str  # JSON
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


class CallReader:
    """Takes calls out of the text of a choice, which comes in pieces.

    What is no call is text, the marks of one included. Space in front of calls and behind the last
    one is left out, and so is all behind the first where one is enough.
    """

    def __init__(self, *, several: bool) -> None:
        self.several = several
        self.calls: list[Called] = []
        self.held = ""  # what may be part of a call
        self.searched = 0  # characters of it in which no end of a call begins

    def push(self, text: str, *, over: bool) -> tuple[str, list[Called]]:
        """Text that is no part of a call, and calls that have ended; all, where it is over."""
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
        """Whether nothing behind what was read counts."""
        return bool(self.calls) and not self.several

    def last(self, *, over: bool) -> str:
        """Of what holds no whole call, the text that surely is none."""
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
        """Note a call, if it is one."""
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
    """Characters in front of what may be space, and then the beginning of a call."""
    for length in range(min(len(text), len(BEGIN) - 1), 0, -1):
        if BEGIN.startswith(text[-length:]):
            return len(text[:-length].rstrip())
    return len(text.rstrip())
