"""Calls between two processes that do not trust each other, over a pair of pipes.

Each side calls what the other has exported, and answers calls while it waits for an answer, because
a test may pass a function to the solution. An exception crosses as the builtin exception of the
same name.
"""

from __future__ import annotations

import builtins
import os

from dlm.eval.sandbox.wire import KEEP, WireError, absorb, decode, encode

TYPE_CHECKING = False  # importing `typing` and `collections` takes longer than most checks
if TYPE_CHECKING:
    from typing import Any

FRAME = 32 * 2**20  # bytes of the longest message
NEVER = (StopIteration, StopAsyncIteration)  # would end a loop of the tests early
REMOTE = "_raised_on_the_other_side"


class Broken(BaseException):
    """The other side is gone, or breaks the protocol; never an `Exception`."""


class Opaque:
    """An object that stays on the other side; it equals nothing, not even itself."""

    def __init__(self, link: Link, handle: int, kind: str) -> None:
        """Refer to an object of the other side by its number."""
        self._link = link
        self._handle = handle
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self._kind} of the solution>"


class Function(Opaque):
    """A function or class of the other side."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it on the other side."""
        return self._link.call(self, args, kwargs)

    @property
    def __name__(self) -> str:
        """Its name on the other side."""
        return self._kind


class Link:
    """One end of the two pipes."""

    def __init__(self, reader: int, writer: int) -> None:
        """Communicate over two file descriptors."""
        self.reader = reader
        self.writer = writer
        self.exports: list[object] = []
        self.handles: dict[int, int] = {}  # by `id`; the list keeps them alive
        self.broken = ""  # why nothing received counts any more

    def export(self, value: object) -> int:
        """The number by which the other side may refer to a value of this side."""
        handle = self.handles.setdefault(id(value), len(self.exports))
        if handle == len(self.exports):
            self.exports.append(value)
        return handle

    def call(self, target: Opaque, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an object of the other side; arguments that it changes are changed here too.

        Raises:
            Exception: as raised by the call.
            Broken: there will be no answer.
        """
        self._send(("call", target, args, kwargs))
        verb, *rest = self._answer()
        if verb == "raise":
            raise revived(*rest)
        value, changed = rest
        if changed is not None:
            self._absorb(args, kwargs, changed)
        return value

    def serve(self) -> None:
        """Answer calls until the other side closes.

        Raises:
            Broken: always, at the end.
        """
        verb, *_ = self._answer()
        raise self._broke(f"{verb} without a call")

    def _answer(self) -> tuple[Any, ...]:
        """The next message that is not a call; calls are answered on the way."""
        while True:
            message = self._receive()
            if message[0] != "call":
                return message
            self._serve_one(*message[1:])

    def _serve_one(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            before = self._snapshot(args, kwargs)
            value = target(*args, **kwargs)
            after = self._snapshot(args, kwargs)
            changed = None if before == after else after
            reply = encode(("return", value, changed), self._number)
        except Broken:
            raise
        except BaseException as error:  # SystemExit too: a function that exits has answered wrongly
            reply = encode(told(error))
        self._write(reply)

    def _snapshot(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The current values of arguments; empty if they cannot be encoded."""
        try:
            return encode((args, kwargs), self._number, snapshot=True)
        except WireError:
            return b""

    def _absorb(self, args: tuple[Any, ...], kwargs: dict[str, Any], snapshot: bytes) -> None:
        """Change arguments here as they were changed on the other side."""
        changed = self._decoded(snapshot)
        for old, new in zip((args, kwargs), changed, strict=True):
            if type(old) is not type(new) or len(old) != len(new):
                raise self._broke("unreadable: other arguments than those sent")
        absorb(args, changed[0])
        for name in kwargs:
            absorb(kwargs[name], changed[1].get(name, KEEP))

    def _number(self, value: object) -> bytes:
        """Encode a reference to a value that stays on its side."""
        if isinstance(value, Opaque) and value._link is self:
            text = b"%d" % value._handle
            return b"h%d:" % len(text) + text
        kind = type(value).__name__
        if callable(value):
            kind = str(getattr(value, "__name__", kind))
        text = b"%d %d %s" % (
            self.export(value),
            callable(value),
            kind[:80].encode("ascii", "replace"),
        )
        return b"o%d:" % len(text) + text

    def _named(self, tag: bytes, payload: bytes) -> Any:
        """The object that a reference names, of this side or of the other."""
        if tag == b"h":
            return self.exports[int(payload)]
        if tag != b"o":
            raise WireError("unknown tag")
        handle, calls, kind = payload.decode("ascii").split(" ", 2)
        return (Function if calls == "1" else Opaque)(self, int(handle), kind)

    def _send(self, message: tuple[Any, ...]) -> None:
        self._write(encode(message, self._number))

    def _write(self, text: bytes) -> None:
        if len(text) > FRAME:
            text = encode(("raise", ("OverflowError",), (f"a message of {len(text)} bytes",)))
        left = memoryview(b"%08x" % len(text) + text)
        try:
            while left:
                left = left[os.write(self.writer, left) :]
        except OSError:
            raise self._broke("the other side is gone") from None

    def _receive(self) -> tuple[Any, ...]:
        head = self._read(8)
        if not set(head) <= set(b"0123456789abcdef"):
            raise self._broke("unreadable: no length where one must be")
        if int(head, 16) > FRAME:
            raise self._broke("unreadable: a message that is too long")
        message = self._decoded(self._read(int(head, 16)))
        if not well_formed(message):
            raise self._broke("unreadable: no call and no answer")
        return message

    def _decoded(self, text: bytes) -> tuple[Any, ...]:
        """Decode a tuple, with the objects that it refers to."""
        try:
            value = decode(text, self._named)
        except (WireError, MemoryError, RecursionError) as error:
            raise self._broke(f"unreadable: {error}") from None
        if type(value) is not tuple or not value:
            raise self._broke("unreadable: no message")
        return value

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.reader, min(size, 2**20))
            if not part:
                raise self._broke("the other side is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _broke(self, why: str) -> Broken:
        self.broken = self.broken or why
        return Broken(why)


def well_formed(message: tuple[Any, ...]) -> bool:
    """Whether a message is a valid call, return or raise."""
    verb, *rest = message
    kinds = [type(each) for each in rest]
    if verb == "call":
        return len(rest) == 3 and callable(rest[0]) and kinds[1:] == [tuple, dict]
    if verb == "return":
        return len(rest) == 2 and kinds[1] in (type(None), bytes)
    return verb == "raise" and kinds == [tuple, tuple]


def told(error: BaseException) -> tuple[Any, ...]:
    """A `raise` message: the names of the error's classes, and its arguments if they are plain."""
    names = tuple(base.__name__ for base in type(error).__mro__)
    try:
        encode(error.args)
        return ("raise", names, tuple(error.args))
    except Exception:
        return ("raise", names, (" ".join(str(error).split())[:500],))


def revived(names: tuple[Any, ...], args: tuple[Any, ...]) -> Exception:
    """The first named class that is a builtin exception, else a RuntimeError.

    It is always an `Exception`, and never one that would end a loop.
    """
    error: Exception | None = None
    for name in names:
        found = getattr(builtins, name, None) if isinstance(name, str) else None
        if not isinstance(found, type) or not issubclass(found, Exception) or found is Exception:
            continue
        if issubclass(found, NEVER):
            continue
        try:
            error = found(*args)
        except TypeError:  # a UnicodeDecodeError, for one, needs five arguments
            continue
        break
    if error is None:
        first = str(names[0]) if names else "nothing"
        error = RuntimeError(": ".join([first, *(str(each)[:200] for each in args)]))
    setattr(error, REMOTE, True)
    return error
