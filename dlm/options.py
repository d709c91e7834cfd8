"""Option checks with one wording for all messages: the option, the rule, the value."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
LARGEST: Final = (1 << 31) - 1
"""Larger than any count or id here, with room for sums and products in int64."""


def integer(name: str, value: object, *, least: int, most: int = LARGEST) -> int:
    """Return `value` if it is an int in [`least`, `most`].

    Raises:
        ValueError: it is not; booleans and floats do not count as ints.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    if int(value) > most:
        long = int(value) >= 10**100  # Python refuses to print an int of thousands of digits
        raise ValueError(
            f"{name} must be an int <= {most}, got {'a longer one' if long else value}"
        )
    return int(value)


def integers(name: str, values: object, *, least: int, most: int = LARGEST) -> list[int]:
    """Return `values` as a list if it is a sequence of ints in [`least`, `most`].

    Raises:
        ValueError: it is not.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a sequence of ints, got {values!r}")
    # Plain ints are checked together: there may be as many as a vocabulary has tokens.
    if set(map(type, values)) == {int} and least <= min(values) and max(values) <= most:
        return list(values)
    return [integer(name, value, least=least, most=most) for value in values]


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False.

    Raises:
        ValueError: it is not; a text such as "no" would count as true.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def number(name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [`least`, `most`].

    Raises:
        ValueError: it is not; booleans and strings do not count as numbers.
    """
    bounds = f" >= {least:g}" if most == math.inf else f" in [{least:g}, {most:g}]"
    rule = f"{name} must be a finite number{bounds if least > -math.inf else ''}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(rule)
    try:
        wide = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got an int of that many digits") from None
    if not math.isfinite(wide) or not least <= wide <= most:
        raise ValueError(rule)
    return wide


def pairs(name: str, given: object, key: str, *, least: float, most: float) -> dict[int, float]:
    """Return `given` as a dict if it maps ints >= 0 to finite numbers in [`least`, `most`].

    Args:
        name: of the option.
        given: a mapping; keys may also be ints as strings, as JSON writes them.
        key: what a key is, for messages.
        least: lower bound of values.
        most: upper bound of values.

    Raises:
        ValueError: it does not, or has a key twice.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must map each {key} to a number, got {given!r}")
    found: dict[int, float] = {}
    for each, value in given.items():
        written = isinstance(each, str) and re.fullmatch("0|[1-9][0-9]{0,9}", each)
        number_of = integer(f"{name}: each {key}", int(each) if written else each, least=0)
        if number_of in found:
            raise ValueError(f"{name} must have each {key} once, got {number_of} twice")
        found[number_of] = number(f"{name}[{number_of}]", value, least=least, most=most)
    return found


def plain(options: object) -> None:
    """Convert the numbers in a dataclass to Python's own, in place: numpy's are narrow and wrap.

    An int becomes a float where one is declared, because torch takes no int beyond 64 bits.
    """
    for each in fields(options):  # type: ignore[arg-type]
        given = getattr(options, each.name)
        if isinstance(given, bool) or not isinstance(given, Real):
            continue
        if isinstance(given, Integral) and "float" not in str(each.type):
            object.__setattr__(options, each.name, int(given))
        else:
            object.__setattr__(options, each.name, float(given))


def file(name: str, path: str | Path) -> str | Path:
    """Return `path` if it is a file, so that a missing one is reported before a model is loaded.

    Raises:
        ValueError: it is not a file.
    """
    try:
        there = isinstance(path, str | Path) and Path(path).expanduser().is_file()
    except OSError:  # a name longer than the system allows
        there = False
    if not there:
        told = str(path) if isinstance(path, Path) else path
        raise ValueError(f"{name} must be a file that exists, got {told!r}")
    return path


def is_folder(place: str | Path) -> bool:
    """Whether a folder exists; False for a name longer than the system allows."""
    try:
        return Path(place).is_dir()
    except OSError:
        return False


def known(
    kind: str, name: object, names: Iterable[str], instead: Mapping[str, str] = NOTHING
) -> str:
    """Return `name` if it is one of `names`.

    Args:
        kind: what it names, for messages.
        name: the given name.
        names: the valid names.
        instead: hints for names that other programs use, in lower case with underscores: see
            `dlm.foreign`.

    Raises:
        ValueError: it is not; the message gives the hint or the closest match, and the list.
    """
    listed = sorted(names)
    if not isinstance(name, str):
        raise ValueError(f"{kind} must be one of {', '.join(listed)}, got {name!r}")
    if name in listed:
        return name
    written = name.lower().replace("-", "_").replace(" ", "_")
    close = get_close_matches(name, listed, n=1) or get_close_matches(written, listed, n=1)
    hint = f". Did you mean {close[0]!r}?" if close else "."
    if written in instead and written not in listed:
        hint = f": {instead[written]}."
    raise ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(listed) or 'none'}")


def writable(text: str, where: str) -> str:
    """Return the text if UTF-8 can encode it: broken input may hold half of a surrogate pair.

    Raises:
        ValueError: it cannot be encoded; names the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"{text[error.start]!r} at character {error.start + 1}"
        raise ValueError(f"{where} must be text that UTF-8 can hold, got {found}") from None
    return text


def names_checked(
    function: Callable[P, R],
    options: Iterable[str] = (),
    instead: Mapping[str, str] = NOTHING,
) -> Callable[P, R]:
    """Make a function reject unknown options with the same `ValueError` as other bad input.

    Python's own error is a `TypeError` without the list of options.

    Args:
        function: any function.
        options: names that its `**options` may hold.
        instead: as in `known`.

    Raises:
        ValueError: by the returned function: an option is unknown; the message gives the hint or
            the closest match, and the list.
    """
    taken = signature(function).parameters.values()
    names = frozenset(options).union(x.name for x in taken if x.kind is not x.VAR_KEYWORD)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            known("option", name, names, instead)
        return function(*args, **kwargs)

    return checked
