"""Rows that wait until others end, and take their places."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from dlm.batch import Change, Rows
from dlm.canvas import Canvas
from dlm.execution import Execution
from dlm.host import send
from dlm.runtime import Step

SHARE: Final = 4
"""Of so many parts of a batch one joins at a time: where a cache is kept the first forward of rows
that join is theirs alone, and on a GPU each number of rows has recordings of its own."""


class Queue:
    """Rows of one canvas, of which some are decoded at a time: the longest first.

    What does not fit memory fails at once so, and rows of like length are decoded together.
    """

    def __init__(
        self, canvas: Canvas, lengths: Sequence[int], batch_size: int, execution: Execution
    ) -> None:
        """Take the rows with the tokens of each, and how many are decoded at a time."""
        self.canvas = canvas
        self.lengths = lengths
        self.batch_size = batch_size
        self.execution = execution
        self.waiting = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        self.inside = 0

    def take(self, count: int) -> Rows:
        """The next ones to be decoded."""
        some, self.waiting = self.waiting[:count], self.waiting[count:]
        self.inside += len(some)
        lengths = [self.lengths[row] for row in some]
        tokens = self.canvas.tokens
        columns = self.execution.columns(max(lengths), tokens.shape[1])
        return Rows(self.canvas.select(send(some, tokens.device), columns), lengths, some)

    def batch(self) -> Rows:
        """Rows to begin with."""
        return self.take(self.batch_size)

    def saw(self, step: Step) -> None:
        """Make room for others behind rows that are done."""
        self.inside -= sum(step.done)

    def fill(self, change: Callable[[], Change]) -> Change:
        """What happens between two forwards: what is asked for, and rows that join."""
        asked = change()
        self.inside -= len(asked.leave)
        part = max(1, self.batch_size // SHARE)
        room = (self.batch_size - self.inside) // part * part
        return replace(asked, join=self.take(room)) if room and self.waiting else asked
