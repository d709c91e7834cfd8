"""Trees of tensors: dataclasses and tuples of them; anything else is a constant."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in field order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors(part)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from tensors(getattr(tree, field.name))


def mapped(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The same value with every tensor replaced by what `function` makes of it."""
    made: Any = tree
    if isinstance(tree, Tensor):
        made = function(tree)
    elif isinstance(tree, tuple):
        parts = [mapped(function, part) for part in tree]
        made = type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    elif is_dataclass(tree) and not isinstance(tree, type):
        parts_by_name = {f.name: mapped(function, getattr(tree, f.name)) for f in fields(tree)}
        made = type(tree)(**parts_by_name)
    return made  # type: ignore[no-any-return]


def stacked(trees: Sequence[T]) -> T:
    """Concatenate values of one kind along the rows of their tensors.

    Raises:
        ValueError: they differ in structure, or their tensors in dtype or shape.
    """
    made: Any = trees[0]
    if len(trees) == 1:
        return trees[0]
    found = {kinds(tree) for tree in trees}
    if len(found) > 1:
        raise ValueError(f"rows to put together must hold the same, got {sorted(found)}")
    parts = [list(tensors(tree)) for tree in trees]
    joined = iter([torch.cat(together) for together in zip(*parts, strict=True)])
    made = mapped(lambda _: next(joined), made)
    return made  # type: ignore[no-any-return]


def kinds(tree: Any) -> tuple[str, ...]:
    """The structure that values must share to be stacked, with their tensors' dtypes and shapes."""
    if isinstance(tree, Tensor):
        return (f"{tree.dtype} {list(tree.shape[1:])}",)
    parts: list[Any] = []
    if isinstance(tree, tuple):
        parts = list(tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        parts = [getattr(tree, field.name) for field in fields(tree)]
    return (type(tree).__name__, *(found for part in parts for found in kinds(part)), "end")


def equal(one: Any, other: Any) -> bool:
    """Whether two values have the same types and contents; waits for the device."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        same = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
        return same and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if is_dataclass(one) and not isinstance(one, type):
        return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # an array has no truth value
        return False
