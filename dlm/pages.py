"""Index of cached pages of tokens: each is found by its tokens and the page before it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

FRONT: Final = -1
"""Stands for the slot before the first page of a row."""
Page = tuple[int, tuple[int, ...]]
"""The slot of the page before it, and its tokens: together, a key for the whole prefix."""


class Ledger:
    """Slots of pages, with least-recently-used eviction.

    A page is always used later than the pages that follow it, so none of those outlives it: the
    slot that a key names still holds what it held when the key was made.
    """

    def __init__(self, page: int, most: int) -> None:
        """Take the tokens of a page and the number of slots."""
        self.page = page
        self.most = most
        self.slots: OrderedDict[Page, int] = OrderedDict()  # most recently used last

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Slots of the longest kept prefix of a row, page by page."""
        path = self.path(tokens)
        self.use(path)
        return [self.slots[page] for page in path]

    def add(self, tokens: Sequence[int]) -> dict[int, int]:
        """Allocate slots for the pages of a row that are not kept yet: page numbers to slots."""
        count = min(len(tokens) // self.page, self.most)
        path = self.path(tokens[: count * self.page])
        self.use(path)  # so that none of them is evicted
        made = {}
        front = self.slots[path[-1]] if path else FRONT
        for number in range(len(path), count):
            path.append(self.key(front, tokens, number))
            front = made[number] = self.slots[path[-1]] = self.free()
        self.use(path)
        return made

    def path(self, tokens: Sequence[int]) -> list[Page]:
        """Keys of the longest kept prefix of a row, page by page."""
        found: list[Page] = []
        front: int | None = FRONT
        for number in range(len(tokens) // self.page):
            assert front is not None
            page = self.key(front, tokens, number)
            front = self.slots.get(page)
            if front is None:
                break
            found.append(page)
        return found

    def key(self, front: int, tokens: Sequence[int], number: int) -> Page:
        """The key of a row's page that follows the page in slot `front`."""
        begin = number * self.page
        return front, tuple(tokens[begin : begin + self.page])

    def use(self, path: Sequence[Page]) -> None:
        """Mark the pages of a row as used, its first page last."""
        for page in reversed(path):
            self.slots.move_to_end(page)

    def free(self) -> int:
        """A slot for one more page, evicting one if needed."""
        if len(self.slots) < self.most:
            return len(self.slots)
        return self.slots.popitem(last=False)[1]
