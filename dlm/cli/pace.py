"""Progress of decoding, for users who wait for it."""

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
LOOK: Final = 0.25  # seconds between reads of the token counts, which wait for the device


class Pace:
    """A bar on stderr, if it is a terminal, that is hidden while results are printed.

    Args:
        lengths: returns the most tokens to decode for each row; called only if a bar would be seen.
        what: what to call the rows, such as "prompts".
    """

    def __init__(self, lengths: Callable[[], Sequence[int]], what: str) -> None:
        self.shown = on_terminal()
        self.lengths = lengths() if self.shown else ()
        self.what = what
        self.ended = 0  # rows
        self.tokens = 0  # tokens in those rows
        self.most = 0  # tokens shown at most
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
        """Hide the bar until the next update."""
        if self.progress.live.is_started:  # else it ends a line that was never begun
            self.progress.stop()

    def tell(self, step: "Step") -> None:
        """Count the tokens of rows that are being decoded, at most every `LOOK` seconds."""
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
        """Yield the same numbered rows, counting each as done."""
        for number, row in rows:
            if self.shown:
                self.ended += 1
                self.tokens += self.lengths[number]
            yield number, row

    @property
    def options(self) -> dict[str, Any]:
        """Options for `dlm.generate_each`: none if no bar would be seen."""
        return {"tell": self.tell} if self.shown else {}
