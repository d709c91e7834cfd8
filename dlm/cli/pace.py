"""How much of what is to be decoded is there, for people who wait for it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dlm.cli.bars import on_terminal

if TYPE_CHECKING:
    from dlm.runtime import Step

T = TypeVar("T")
PATIENCE: Final = 0.5  # seconds before a bar is drawn
LOOK: Final = 0.25  # seconds between two looks at the tokens, each of which waits for the device


class Pace:
    """A bar on stderr, where that is a terminal, which makes way for what is printed.

    Args:
        lengths: gives the tokens to decode of each row, at most; asked where a bar would be seen.
        what: what the rows are, such as "prompts".
    """

    def __init__(self, lengths: Callable[[], Sequence[int]], what: str) -> None:
        self.shown = on_terminal()
        self.lengths = lengths() if self.shown else ()
        self.what = what
        self.ended = 0  # rows
        self.tokens = 0  # of those
        self.most = 0  # tokens that were shown
        self.next = time.monotonic() + PATIENCE
        self.progress = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self.task = self.progress.add_task("", total=max(1, sum(self.lengths)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def hide(self) -> None:
        """Make way until the next look."""
        if self.progress.live.is_started:  # else it ends a line that was never begun
            self.progress.stop()

    def tell(self, step: "Step") -> None:
        """Look at the tokens of rows that are being decoded, now and then."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + LOOK
        decoded = step.tally.decoded.tolist()
        inside = sum(count for count, live in zip(decoded, step.live, strict=True) if live)
        self.most = max(self.most, self.tokens + inside)
        told = f"{self.most} of {sum(self.lengths)} tokens"
        if len(self.lengths) > 1:
            told += f", {self.ended} of {len(self.lengths)} {self.what}"
        self.progress.update(self.task, completed=self.most, description=told)
        self.progress.start()

    def seen(self, rows: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """The same rows, by their numbers, each of which has ended."""
        for number, row in rows:
            if self.shown:
                self.ended += 1
                self.tokens += self.lengths[number]
            yield number, row

    @property
    def options(self) -> dict[str, Any]:
        """Of `dlm.generate_each`: none where nobody looks."""
        return {"tell": self.tell} if self.shown else {}
