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
    kinds = {kind(tree) for tree in trees}
    if len(kinds) > 1:
        raise ValueError(f"rows to put together must hold the same, got {sorted(kinds)}")
    if isinstance(made, Tensor):
        made = torch.cat([each for each in trees if isinstance(each, Tensor)])
    elif isinstance(made, tuple):
        parts = [stacked([tree[i] for tree in trees]) for i in range(len(made))]  # type: ignore[index]
        made = type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)
    elif is_dataclass(made) and not isinstance(made, type):
        names = [field.name for field in fields(made)]
        made = type(made)(**{n: stacked([getattr(tree, n) for tree in trees]) for n in names})
    return made  # type: ignore[no-any-return]


def kind(tree: Any) -> str:
    """What values that can be stacked have in common, without their parts."""
    if isinstance(tree, Tensor):
        return f"{tree.dtype} {list(tree.shape[1:])}"
    size = f" of {len(tree)}" if isinstance(tree, tuple) else ""
    return f"{type(tree).__name__}{size}"


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
