"""Encoding of values between the judge and the subject: tagged bytes that carry no code.

A value is a one-letter tag, a decimal length and a colon, and then that many bytes or items::

    i2:1f  s3:abc  l2:i1:1i1:2  m1:s1:ai1:1  E5:ranges3:...

Decoding builds plain data and nothing else: no class of the other side, no import by name, and no
call of anything received. Anything that is not plain data stays on its side and crosses as a
number.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` and `collections` takes longer than most checks
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


DEPTH = 100  # levels of nesting
NODES = 1_000_000  # values in one message
ITEMS = 100_000  # taken from an iterator, which may be infinite


class WireError(Exception):
    """Bytes that are not a message, or a value that cannot be encoded."""


class Keep:
    """Stands for a part of an argument that cannot have changed."""


KEEP = Keep()


def offset_of(value: Any) -> float | None:
    """Seconds that a date is ahead of UTC, if it has an offset."""
    ahead = value.utcoffset()
    return None if ahead is None else float(ahead.total_seconds())


def zone(seconds: float | None) -> Any:
    """The fixed time zone with this offset."""
    import datetime

    return None if seconds is None else datetime.timezone(datetime.timedelta(seconds=seconds))


def library(module: str, name: str) -> Any:
    """A class of the standard library, imported only when a message has one of its values."""
    return getattr(__import__(module), name)


def day_parts(value: Any) -> tuple[int, ...]:
    """The parts of a date."""
    return (value.year, value.month, value.day)


def clock_parts(value: Any) -> tuple[int, ...]:
    """The parts of a time of day."""
    return (value.hour, value.minute, value.second, value.microsecond)


FACTORIES = {"int": int, "list": list, "set": set, "dict": dict, "str": str, "float": float}


def defaults(factory: str | None, items: dict[Any, Any]) -> Any:
    """A defaultdict whose factory is one of a few builtins, or none."""
    return library("collections", "defaultdict")(FACTORIES.get(factory or ""), items)


TAKE: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("builtins", "range"): lambda v: (v.start, v.stop, v.step),
    ("builtins", "complex"): lambda v: (v.real, v.imag),
    ("builtins", "dict_keys"): lambda v: (list(v),),
    ("builtins", "dict_values"): lambda v: (list(v),),
    ("builtins", "dict_items"): lambda v: (list(v),),
    ("collections", "deque"): lambda v: (list(v), v.maxlen),
    ("collections", "Counter"): lambda v: (dict(v),),
    ("collections", "OrderedDict"): lambda v: (dict(v),),
    ("collections", "defaultdict"): lambda v: (
        getattr(v.default_factory, "__name__", None),
        dict(v),
    ),
    ("decimal", "Decimal"): lambda v: (str(v),),
    ("fractions", "Fraction"): lambda v: (v.numerator, v.denominator),
    ("datetime", "timedelta"): lambda v: (v.days, v.seconds, v.microseconds),
    ("datetime", "datetime"): lambda v: (*day_parts(v), *clock_parts(v), v.fold, offset_of(v)),
    ("datetime", "date"): day_parts,
    ("datetime", "time"): lambda v: (*clock_parts(v), v.fold, offset_of(v)),
}
"""The parts from which a value of a class is rebuilt."""

MAKE: dict[str, Callable[..., Any]] = {
    "range": range,
    "complex": complex,
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_values": lambda items: dict(enumerate(items)).values(),
    "dict_items": lambda items: dict(items).items(),
    "deque": lambda items, most: library("collections", "deque")(items, most),
    "Counter": lambda items: library("collections", "Counter")(items),
    "OrderedDict": lambda items: library("collections", "OrderedDict")(items),
    "defaultdict": defaults,
    "Decimal": lambda text: library("decimal", "Decimal")(text),
    "Fraction": lambda above, below: library("fractions", "Fraction")(above, below),
    "timedelta": lambda *parts: library("datetime", "timedelta")(*parts),
    "datetime": lambda *parts: library("datetime", "datetime")(
        *parts[:7], tzinfo=zone(parts[8]), fold=parts[7]
    ),
    "date": lambda *parts: library("datetime", "date")(*parts),
    "time": lambda *parts: library("datetime", "time")(
        *parts[:4], tzinfo=zone(parts[5]), fold=parts[4]
    ),
    "iterator": lambda items: iter(items),
    "keep": lambda: KEEP,
}
"""The functions that rebuild it from its parts."""

SINGLES = {None: b"n0:", True: b"t0:", False: b"f0:"}
ATOMS: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    int: (b"i", lambda v: b"%x" % v),  # hexadecimal: decimal has a limit of digits
    float: (b"d", lambda v: float.hex(v).encode()),
    str: (b"s", lambda v: str.encode(v, "utf-8", "surrogatepass")),
    bytes: (b"b", lambda v: bytes(memoryview(v))),
    bytearray: (b"y", lambda v: bytes(memoryview(v))),
}
LISTED: dict[type, tuple[bytes, Callable[[Any], Iterator[Any]]]] = {
    list: (b"l", list.__iter__),
    tuple: (b"u", tuple.__iter__),
    set: (b"e", set.__iter__),
    frozenset: (b"z", frozenset.__iter__),
}


class Encoder:
    """Encodes values; `number` encodes those that are not plain data as references."""

    def __init__(self, number: Callable[[object], bytes], *, snapshot: bool = False) -> None:
        """Start a message.

        Args:
            number: encodes a value that stays on this side.
            snapshot: do not consume iterators; used to detect changes later.
        """
        self.number = number
        self.snapshot = snapshot
        self.parts: list[bytes] = []
        self.nodes = 0

    def put(self, value: Any, depth: int = 0) -> None:
        """Append a value.

        Raises:
            WireError: it is nested too deeply, or too large.
        """
        self.nodes += 1
        if depth > DEPTH or self.nodes > NODES:
            raise WireError("a value is nested too deeply" if depth > DEPTH else "too many values")
        if value is None or isinstance(value, bool):
            self.parts.append(SINGLES[value])
            return
        for base in type(value).__mro__:
            if base in ATOMS:
                tag, text = ATOMS[base]
                self._sized(tag, text(value))
                return
            if base in LISTED:
                self._items(*LISTED[base], value, depth)
                return
            taken = TAKE.get((base.__module__, base.__name__))
            if taken is not None:
                self._built(base.__name__, tuple(taken(value)), depth)
                return
            if base is dict:
                self._mapping(value, depth)
                return
        self._other(value, depth)

    def _sized(self, tag: bytes, text: bytes) -> None:
        self.parts += (tag, b"%d:" % len(text), text)

    def _items(
        self, tag: bytes, walk: Callable[[Any], Iterator[Any]], value: Any, depth: int
    ) -> None:
        items = list(walk(value))
        self.parts += (tag, b"%d:" % len(items))
        for item in items:
            self.put(item, depth + 1)

    def _mapping(self, value: dict[Any, Any], depth: int) -> None:
        items = list(dict.items(value))
        self.parts += (b"m", b"%d:" % len(items))
        for key, item in items:
            self.put(key, depth + 1)
            self.put(item, depth + 1)

    def _built(self, name: str, parts: tuple[Any, ...], depth: int) -> None:
        self._sized(b"E", name.encode())
        self.put(parts, depth + 1)

    def _other(self, value: Any, depth: int) -> None:
        if not hasattr(type(value), "__next__"):
            self.parts.append(self.number(value))
        elif self.snapshot:
            self._built("keep", (), depth)
        else:
            self._built("iterator", (bounded(value),), depth)


def bounded(values: Iterator[Any]) -> list[Any]:
    """All values of an iterator.

    Raises:
        WireError: there are more than `ITEMS`.
    """
    taken = []
    for item in values:
        taken.append(item)
        if len(taken) > ITEMS:
            raise WireError(f"an iterator gave more than {ITEMS} values")
    return taken


class Decoder:
    """Decodes values; `named` resolves references to objects of either side."""

    def __init__(self, text: bytes, named: Callable[[bytes, bytes], Any]) -> None:
        """Start at the first byte.

        Args:
            text: a whole message.
            named: returns the object for a tag, `h` or `o`, and its payload.
        """
        self.text = text
        self.named = named
        self.at = 0
        self.nodes = 0

    def take(self, depth: int = 0) -> Any:
        """Decode the next value.

        Raises:
            WireError: there is no valid one; the message says why.
        """
        self.nodes += 1
        if depth > DEPTH or self.nodes > NODES:
            raise WireError("nested too deeply" if depth > DEPTH else "too many values")
        tag = self.text[self.at : self.at + 1]
        colon = self.text.find(b":", self.at, self.at + 16)
        digits = self.text[self.at + 1 : colon]
        if colon < 0 or not digits.isdigit():
            raise WireError("no length where one must be")
        self.at = colon + 1
        size = int(digits)
        if size > len(self.text):
            raise WireError("a length beyond the message")
        if tag in CONTAINERS:
            make, per = CONTAINERS[tag]
            items = [self.take(depth + 1) for _ in range(size * per)]
            return make(items)
        payload = self.text[self.at : self.at + size]
        if len(payload) != size:
            raise WireError("a message that stops early")
        self.at += size
        if tag == b"E":
            return self._rebuilt(payload, depth)
        if tag in READ:
            return READ[tag](payload)
        return self.named(tag, payload)

    def _rebuilt(self, name: bytes, depth: int) -> Any:
        make = MAKE.get(name.decode("ascii", "replace"))
        parts = self.take(depth + 1)
        if make is None or type(parts) is not tuple:
            raise WireError("a class that messages do not have")
        return make(*parts)


def pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict from alternating keys and values."""
    return dict(zip(items[::2], items[1::2], strict=True))


CONTAINERS: dict[bytes, tuple[Callable[[list[Any]], Any], int]] = {
    b"l": (list, 1),
    b"u": (tuple, 1),
    b"e": (set, 1),
    b"z": (frozenset, 1),
    b"m": (pairs, 2),
}
READ: dict[bytes, Callable[[bytes], Any]] = {
    b"n": lambda _: None,
    b"t": lambda _: True,
    b"f": lambda _: False,
    b"i": lambda text: int(text, 16),
    b"d": lambda text: float.fromhex(text.decode("ascii")),
    b"s": lambda text: text.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"y": bytearray,
}


def refuse(value: object) -> bytes:
    """Refuse to encode what is not plain data."""
    raise WireError(f"{type(value).__name__} is no plain data")


def unknown(tag: bytes, payload: bytes) -> Any:
    """Refuse to decode a tag that is not of plain data."""
    raise WireError(f"unknown tag {tag!r}")


def encode(
    value: Any, number: Callable[[object], bytes] = refuse, *, snapshot: bool = False
) -> bytes:
    """Encode a value.

    Raises:
        WireError: it is nested too deeply or too large, or is not plain data and `number` was not
            given.
    """
    encoder = Encoder(number, snapshot=snapshot)
    encoder.put(value)
    return b"".join(encoder.parts)


def decode(text: bytes, named: Callable[[bytes, bytes], Any] = unknown) -> Any:
    """Decode a value.

    Raises:
        WireError: the bytes are not a valid value.
    """
    decoder = Decoder(text, named)
    try:
        value = decoder.take()
    except WireError:
        raise
    except Exception as error:  # an unhashable key, a date in the 13th month, no such letter, ...
        raise WireError(f"{type(error).__name__} in a message") from None
    if decoder.at != len(text):
        raise WireError("bytes behind a message")
    return value


def absorb(old: Any, new: Any) -> Any:
    """`old`, changed in place to its value on the other side; `new` if that is not possible."""
    if new is KEEP:
        return old
    if type(old) is not type(new):
        return new
    if isinstance(old, tuple):
        return _absorb_items(old, new)
    if isinstance(old, list | bytearray):
        old[:] = _absorb_items(old, new)
    elif isinstance(old, dict):
        items = {key: absorb(old[key], new[key]) if key in old else new[key] for key in new}
        old.clear()
        old.update(items)
    elif isinstance(old, set) or type(old).__name__ == "deque":
        inside = list(new)
        old.clear()
        (old.update if isinstance(old, set) else old.extend)(inside)
    else:
        return old if old == new else new
    return old


def _absorb_items(old: Any, new: Any) -> Any:
    merged = [absorb(*pair) for pair in zip(old, new, strict=False)] + list(new[len(old) :])
    if isinstance(old, tuple) and len(old) == len(new):
        same = all(a is b for a, b in zip(old, merged, strict=True))
        return old if same else tuple(merged)
    return merged
