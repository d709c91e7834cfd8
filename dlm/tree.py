"""Values made of tensors: dataclasses and tuples of them, with anything else as constants."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in the order of the fields."""
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
    """Values of one kind as one, the rows of their tensors behind each other.

    Raises:
        ValueError: they are made of other parts, or their tensors of other dtypes or shapes.
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
    """What values that can be stacked have in common: their parts, and their tensors' kinds."""
    if isinstance(tree, Tensor):
        return (f"{tree.dtype} {list(tree.shape[1:])}",)
    parts: list[Any] = []
    if isinstance(tree, tuple):
        parts = list(tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        parts = [getattr(tree, field.name) for field in fields(tree)]
    return (type(tree).__name__, *(found for part in parts for found in kinds(part)), "end")


def equal(one: Any, other: Any) -> bool:
    """Whether two values are of the same types and hold the same; waits for the device."""
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
    except (TypeError, ValueError, RuntimeError):  # an array has no truth
        return False
