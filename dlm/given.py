"""What users hold prompts in: arrays, tensors, tokenizers' outputs, messages of several parts."""

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Number
from typing import Any, Protocol

from dlm.options import writable


class Array(Protocol):
    """A tensor of torch or an array of numpy."""

    def tolist(self) -> Any:
        """Its values, in lists."""
        ...


def listed(given: Any) -> Any:
    """What an array, a tokenizer's output or an iterator stands for, as a list; all else as it is.

    A tokenizer's output, or another mapping with `input_ids`, is without its padding where it has
    an `attention_mask`.
    """
    if isinstance(given, str | bytes | Sequence):
        return given
    if isinstance(given, Mapping):
        return unpadded(given) if "input_ids" in given else given
    if hasattr(given, "tolist"):  # a number of numpy, too
        try:
            return given.tolist() if getattr(given, "ndim", 0) else given
        except RuntimeError:  # of a tensor that is nested, or has no values
            return given
    ordered = isinstance(given, Iterable) and not isinstance(given, Set)
    flat = getattr(given, "ndim", 1) == 1  # of a table there would be the names of its columns
    return list(given) if ordered and flat else given


def unpack(options: object, names: Iterable[str]) -> None:
    """Make lists of the arrays in fields of a frozen dataclass, in place."""
    for name in names:
        object.__setattr__(options, name, listed(getattr(options, name)))


def unpadded(given: Mapping[str, Any]) -> Any:
    """Token ids of a tokenizer's output, of one text or of several.

    Raises:
        ValueError: a mask of another shape.
    """
    ids, mask = listed(given["input_ids"]), listed(given.get("attention_mask"))
    if mask is None:
        return ids
    several = bool(ids) and not isinstance(ids[0], Number)  # numpy's numbers too
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
    """Fields of a part of a message that say something of its text; `cache_control` does not."""

    def empty(value: Any) -> bool:  # a picture is compared with nothing
        return value is None or value is False or (isinstance(value, list | dict) and not value)

    return {k: v for k, v in part.items() if k != "cache_control" and not empty(v)}


def message_text(content: Any, where: str) -> str:
    """The content of a chat message: a text, or parts that are texts, joined.

    Raises:
        ValueError: it is something else.
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
