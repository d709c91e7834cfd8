"""Values made of tensors, stored in few buffers so that few calls copy all of them."""

from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from dlm.tree import kinds, mapped, tensors

T = TypeVar("T")
ALIGNMENT: Final = 16
"""Every tensor begins at a multiple of this many bytes, as kernels are compiled for that."""


class Slab(Generic[T]):
    """Memory for a value, with its tensors of each dtype end to end."""

    def __init__(self, like: T) -> None:
        """Allocate memory for values like this one, and copy it."""
        self.buffers: list[Tensor] = []
        self.free: list[list[Tensor]] = []  # padding after each tensor
        views: dict[torch.dtype, Iterator[Tensor]] = {}
        for group in by_dtype(like):
            unit = ALIGNMENT // group[0].element_size()
            gaps = [-part.numel() % unit for part in group]
            sizes = [part.numel() + gap for part, gap in zip(group, gaps, strict=True)]
            buffer, free = group[0].new_zeros(sum(sizes)), group[0].new_zeros(unit)
            pieces = zip(buffer.split(sizes), group, strict=True)
            views[buffer.dtype] = iter([piece[: of.numel()].view(of.shape) for piece, of in pieces])
            self.buffers.append(buffer)
            self.free.append([free[:gap] for gap in gaps])
        self.value: T = mapped(lambda part: next(views[part.dtype]), like)
        self.copy(like)

    def holds(self, value: Any) -> bool:
        """Whether a value has the same structure, with tensors of the same dtypes and shapes."""
        shapes = ([x.shape for x in tensors(tree)] for tree in (self.value, value))
        return kinds(self.value) == kinds(value) and next(shapes) == next(shapes)

    def copy(self, value: T) -> None:
        """Copy a value, tensor by tensor."""
        for into, of in zip(by_dtype(self.value), by_dtype(value), strict=True):
            torch._foreach_copy_(into, of)

    def gather(self, value: T) -> None:
        """Copy a value that does not alias this memory, in one call per dtype.

        All of it is copied here, and again by `follow`; a decoder state as large as the logits
        would take noticeable time.
        """
        for buffer, free, group in zip(self.buffers, self.free, by_dtype(value), strict=True):
            flat = [part.reshape(-1) for part in group]
            torch.cat([each for pair in zip(flat, free, strict=True) for each in pair], out=buffer)

    def follow(self, other: "Slab[T]") -> None:
        """Copy the contents of another slab for the same kind of value."""
        for into, of in zip(self.buffers, other.buffers, strict=True):
            into.copy_(of)


def by_dtype(tree: Any) -> list[list[Tensor]]:
    """The tensors of a value grouped by dtype, as one call can copy a group."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for each in tensors(tree):
        groups.setdefault(each.dtype, []).append(each)
    return [*groups.values()]
