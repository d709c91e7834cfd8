"""Any JSON object (RFC 8259) as an automaton over bytes, made without a regular expression.

A state is what encloses a place, `{` and `[` from the outermost on, and what is due there.
"""

from collections.abc import Iterator
from typing import Final

import torch

from dlm.constraints.language import ByteAutomaton

NAME: Final = "*any JSON object"
"""Of the language: no regular expression, and so equal to none."""
DEEP: Final = 3
"""Objects and arrays in each other: every further one doubles the states."""
State = tuple[str, str]

VALUE: Final = {'"': "text", "-": "minus", "0": "zero", "t": "rue", "f": "alse", "n": "ull"}
VALUE.update(dict.fromkeys("123456789", "whole"))
DIGITS: Final = "0123456789"
NUMBERS: Final[dict[str, dict[str, str]]] = {
    "minus": {"0": "zero"} | dict.fromkeys(DIGITS[1:], "whole"),
    "zero": {".": "point", "e": "power", "E": "power"},
    "whole": {".": "point", "e": "power", "E": "power"} | dict.fromkeys(DIGITS, "whole"),
    "point": dict.fromkeys(DIGITS, "part"),
    "part": {"e": "power", "E": "power"} | dict.fromkeys(DIGITS, "part"),
    "power": {"+": "sign", "-": "sign"} | dict.fromkeys(DIGITS, "tens"),
    "sign": dict.fromkeys(DIGITS, "tens"),
    "tens": dict.fromkeys(DIGITS, "tens"),
}
"""What follows in a number, by what it is due to be."""
WHOLE: Final = ("zero", "whole", "part", "tens")  # numbers that may end
BEHIND: Final = {"key": "colon", "text": "next"}  # what is due behind the two kinds of strings
CHARACTERS: Final = (
    ((0xC2, 0xDF), (0x80, 0xBF), 0),
    ((0xE0, 0xE0), (0xA0, 0xBF), 1),
    ((0xE1, 0xEC), (0x80, 0xBF), 1),
    ((0xED, 0xED), (0x80, 0x9F), 1),
    ((0xEE, 0xEF), (0x80, 0xBF), 1),
    ((0xF0, 0xF0), (0x90, 0xBF), 2),
    ((0xF1, 0xF3), (0x80, 0xBF), 2),
    ((0xF4, 0xF4), (0x80, 0x8F), 2),
)
"""First bytes of a character of several, second ones, and how many more follow (RFC 3629)."""


def json_objects() -> ByteAutomaton:
    """Any object, nested `DEEP` at most, with at most one space between signs.

    Characters stand for themselves: there are no escapes by number.
    """
    start: State = ("", "open")
    places, found = {start: 0}, [start]
    edges: list[tuple[int, int, int]] = []
    for state in found:  # which grows
        for byte, target in follows(state):
            if target not in places:
                places[target] = len(found)
                found.append(target)
            edges.append((places[state], byte, places[target]))
    following = torch.full((len(found) + 1, 256), len(found))
    source, byte, target_ = torch.tensor(edges).T
    following[source, byte] = target_
    accepting = torch.zeros(len(found) + 1, dtype=torch.bool)
    accepting[places["", "next"]] = True
    return ByteAutomaton(following, accepting, 0).smallest()


def follows(state: State) -> Iterator[tuple[int, State]]:
    """Bytes that may follow, and where they lead."""
    around, due = state
    kind, _, rest = due.partition(" ")
    if kind in ("key", "text"):
        yield from in_text(around, kind, rest)
    elif kind in NUMBERS:
        yield from ((ord(sign), (around, to)) for sign, to in NUMBERS[kind].items())
        if kind in WHOLE:
            yield from follows((around, "next"))
    elif kind in ("rue", "ue", "e", "alse", "lse", "se", "ull", "ll", "l"):
        yield ord(kind[0]), (around, kind[1:] or "next")
    else:
        yield from between(around, kind)
        if rest != "spaced" and kind != "open" and (around or kind != "next"):
            yield ord(" "), (around, f"{kind} spaced")


def between(around: str, due: str) -> Iterator[tuple[int, State]]:
    """Signs that may stand where something is due."""
    if due in ("first", "member"):
        yield ord('"'), (around, "key")
    if due == "colon":
        yield ord(":"), (around, "value")
    if due in ("value", "item"):
        yield from ((ord(sign), (around, to)) for sign, to in VALUE.items())
        if len(around) < DEEP:
            yield from opened(around)
            yield ord("["), (around + "[", "item")
    if due == "open":
        yield from opened(around)
    if due == "next" and around:
        yield ord(","), (around, "member" if around[-1] == "{" else "value")
    ends = {"first": "{", "item": "["}.get(due, around[-1:] if due == "next" else "")
    if ends:
        yield ord("}" if ends == "{" else "]"), (around[:-1], "next")


def opened(around: str) -> Iterator[tuple[int, State]]:
    """An object that begins."""
    yield ord("{"), (around + "{", "first")


def in_text(around: str, kind: str, rest: str) -> Iterator[tuple[int, State]]:
    """What may follow in a string: `rest` tells what of a character is still to come."""
    if rest == "\\":
        yield from ((ord(sign), (around, kind)) for sign in '"\\/bfnrt')
        return
    if rest:
        low, high, more = map(int, rest.split("-"))
        behind = f"{kind} 128-191-{more - 1}" if more else kind
        yield from ((byte, (around, behind)) for byte in range(low, high + 1))
        return
    yield ord('"'), (around, BEHIND[kind])
    yield ord("\\"), (around, f"{kind} \\")
    plain = (byte for byte in range(0x20, 0x80) if byte not in b'"\\')
    yield from ((byte, (around, kind)) for byte in plain)
    for (first, last), (low, high), more in CHARACTERS:
        for byte in range(first, last + 1):
            yield byte, (around, f"{kind} {low}-{high}-{more}")
