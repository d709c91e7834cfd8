"""Which pages of tokens are kept where, each found by its tokens and by the page in front of it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

FRONT: Final = -1
"""In the place of a slot, what stands in front of the first page of a row."""
Page = tuple[int, tuple[int, ...]]
"""The slot of the page in front of it, and its tokens: one key for all that a row begins with."""


class Ledger:
    """Slots of pages; those that were used longest ago make room for others.

    A page is always used later than the pages that follow it, so that none of those outlives it:
    the slot that a key names holds what it held when the key was made.
    """

    def __init__(self, page: int, most: int) -> None:
        """Take the tokens of a page and how many there are slots for."""
        self.page = page
        self.most = most
        self.slots: OrderedDict[Page, int] = OrderedDict()  # the one used last is last

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Slots of the pages that a row begins with, as far as they are kept."""
        path = self.path(tokens)
        self.use(path)
        return [self.slots[page] for page in path]

    def add(self, tokens: Sequence[int]) -> dict[int, int]:
        """Make room for the pages of a row that are not kept yet: their numbers and slots."""
        count = min(len(tokens) // self.page, self.most)
        path = self.path(tokens[: count * self.page])
        self.use(path)  # so that none of them makes room
        made = {}
        front = self.slots[path[-1]] if path else FRONT
        for number in range(len(path), count):
            path.append(self.key(front, tokens, number))
            front = made[number] = self.slots[path[-1]] = self.free()
        self.use(path)
        return made

    def path(self, tokens: Sequence[int]) -> list[Page]:
        """The pages that a row begins with, as far as they are kept."""
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
        """A page of a row, behind the one in a slot."""
        begin = number * self.page
        return front, tuple(tokens[begin : begin + self.page])

    def use(self, path: Sequence[Page]) -> None:
        """Note that pages of a row are used, the first one of the row last."""
        for page in reversed(path):
            self.slots.move_to_end(page)

    def free(self) -> int:
        """A slot for one more page."""
        if len(self.slots) < self.most:
            return len(self.slots)
        return self.slots.popitem(last=False)[1]
