"""Rows that wait until others end, and take their places."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dlm.batch import Change, Rows
from dlm.execution import Execution
from dlm.host import send
from dlm.runtime import Step


@dataclass(slots=True)
class Places:
    """Those of a batch, and when rows take the empty ones.

    Where a cache is kept the first forward of rows that join is theirs alone, and the others wait
    for it. So rows join once the places that were empty at the forwards since others did add up to
    a whole batch: not to join would cost a forward, too.
    """

    count: int
    apart: bool  # whether rows that join have a forward of their own first
    lost: int = 0  # forwards of a row that empty places could have made

    def room(self, inside: int, waiting: int) -> int:
        """Rows that join now, given how many are decoded and how many wait; once a forward."""
        room = self.count - inside
        self.lost += room
        waits = self.apart and inside and self.lost < self.count
        if not (room and waiting) or waits:
            return 0
        self.lost = 0
        return room


class Queue:
    """Rows of one canvas, of which some are decoded at a time, in their order."""

    def __init__(self, rows: Rows, batch_size: int, execution: Execution, *, apart: bool) -> None:
        """Take the rows, and how they are decoded.

        Args:
            rows: all of them, by their numbers.
            batch_size: how many are decoded at a time, at most.
            execution: how.
            apart: whether rows that join have a forward of their own first.
        """
        self.rows = rows
        self.execution = execution
        self.places = Places(batch_size, apart)
        self.waiting = list(rows.names)
        self.inside: set[int] = set()  # names of rows that are being decoded

    def take(self, count: int) -> Rows:
        """The next ones to be decoded."""
        some, self.waiting = self.waiting[:count], self.waiting[count:]
        self.inside.update(some)
        every = self.rows
        lengths = [every.lengths[row] for row in some]
        languages = [every.languages[row] for row in some] if every.languages else []
        tokens = every.canvas.tokens
        columns = self.execution.columns(max(lengths), tokens.shape[1])
        canvas = every.canvas.select(send(some, tokens.device), columns)
        return Rows(canvas, lengths, some, languages)

    def batch(self) -> Rows:
        """Rows to begin with."""
        return self.take(self.places.count)

    def saw(self, step: Step) -> None:
        """Make room for others behind rows that are done."""
        self.inside -= {name for name, done in zip(step.names, step.done, strict=True) if done}

    def fill(self, change: Callable[[], Change]) -> Change:
        """What happens between two forwards: what is asked for, and rows that join."""
        asked = change()
        self.inside -= asked.leave
        room = self.places.room(len(self.inside), len(self.waiting))
        return replace(asked, join=self.take(room)) if room else asked
