"""Rows that wait for others to end, and take their places."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dlm.batch import Change, Rows
from dlm.execution import Execution
from dlm.host import send
from dlm.runtime import Step


@dataclass(slots=True)
class Places:
    """The places of a batch, and when waiting rows take empty ones.

    With a cache, rows that join first get a forward pass of their own, while the others wait. So
    rows join once the places left empty at the forward passes since the last join add up to a whole
    batch: by then, not joining would have cost a forward pass too.
    """

    count: int
    apart: bool  # whether joining rows get a forward pass of their own first
    lost: int = 0  # row passes that empty places could have made

    def room(self, inside: int, waiting: int) -> int:
        """How many rows join now, given how many are decoded and how many wait.

        Call it once per forward pass.
        """
        room = self.count - inside
        self.lost += room
        waits = self.apart and inside and self.lost < self.count
        if not (room and waiting) or waits:
            return 0
        self.lost = 0
        return room


class Queue:
    """Rows of one canvas, some of which are decoded at a time, in order."""

    def __init__(self, rows: Rows, batch_size: int, execution: Execution, *, apart: bool) -> None:
        """Take the rows, and how they are decoded.

        Args:
            rows: all rows, by number.
            batch_size: most rows decoded at a time.
            execution: how steps are run.
            apart: whether joining rows get a forward pass of their own first.
        """
        self.rows = rows
        self.execution = execution
        self.places = Places(batch_size, apart)
        self.waiting = list(rows.names)
        self.inside: set[int] = set()  # names of rows that are being decoded

    def take(self, count: int) -> Rows:
        """The next rows to decode."""
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
        """The rows to begin with."""
        return self.take(self.places.count)

    def saw(self, step: Step) -> None:
        """Free the places of finished rows."""
        self.inside -= {name for name, done in zip(step.names, step.done, strict=True) if done}

    def fill(self, change: Callable[[], Change]) -> Change:
        """What happens between two forward passes: what `change` asks for, and rows that join."""
        asked = change()
        self.inside -= asked.leave
        room = self.places.room(len(self.inside), len(self.waiting))
        return replace(asked, join=self.take(room)) if room else asked
