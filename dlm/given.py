"""Conversion of the containers that users pass prompts in: arrays, tokenizer outputs, messages."""

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Number
from typing import Any, Protocol

from dlm.options import writable


class Array(Protocol):
    """A torch tensor or a numpy array."""

    def tolist(self) -> Any:
        """The values as nested lists."""
        ...


def listed(given: Any) -> Any:
    """Convert an array, a tokenizer's output or an iterator to a list; return anything else.

    A tokenizer's output, or another mapping with `input_ids`, loses its padding if it has an
    `attention_mask`.
    """
    if isinstance(given, str | bytes | Sequence):
        return given
    if isinstance(given, Mapping):
        return unpadded(given) if "input_ids" in given else given
    if hasattr(given, "tolist"):  # numpy scalars too
        try:
            return given.tolist() if getattr(given, "ndim", 0) else given
        except RuntimeError:  # nested tensors, and those without values
            return given
    ordered = isinstance(given, Iterable) and not isinstance(given, Set)
    flat = getattr(given, "ndim", 1) == 1  # iterating over a table gives its column names
    return list(given) if ordered and flat else given


def unpack(options: object, names: Iterable[str]) -> None:
    """Convert the arrays in some fields of a frozen dataclass to lists, in place."""
    for name in names:
        object.__setattr__(options, name, listed(getattr(options, name)))


def unpadded(given: Mapping[str, Any]) -> Any:
    """Token ids of a tokenizer's output, for one text or several.

    Raises:
        ValueError: the mask has another shape.
    """
    ids, mask = listed(given["input_ids"]), listed(given.get("attention_mask"))
    if mask is None:
        return ids
    several = bool(ids) and not isinstance(ids[0], Number)  # numpy scalars too
    pairs = zip(ids, mask, strict=True) if several else [(ids, mask)]
    try:
        rows = [
            [token for token, kept in zip(listed(row), listed(keep), strict=True) if kept]
            for row, keep in pairs
        ]
    except (TypeError, ValueError):
        raise ValueError("attention_mask must have the shape of input_ids") from None
    return rows if several else rows[0]


def told_by(part: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message part that carry meaning; `cache_control` does not."""

    def empty(value: Any) -> bool:  # never compares the value itself, which may be an image
        return value is None or value is False or (isinstance(value, list | dict) and not value)

    return {k: v for k, v in part.items() if k != "cache_control" and not empty(v)}


def message_text(content: Any, where: str) -> str:
    """The content of a chat message: a text, or text parts joined.

    Raises:
        ValueError: it is anything else.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else listed(content)
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"{where} must be a text or a list of parts, got {content!r}")
    for part in parts:
        told = told_by(part) if isinstance(part, dict) else {}
        fits = told.keys() == {"type", "text"} and told["type"] == "text"
        if not fits or not isinstance(told["text"], str):
            raise ValueError(
                f'parts of {where} must be {{"type": "text", "text": ...}}, got {part!r}'
            )
    return writable("".join(part["text"] for part in parts), where)
