"""A progress bar on stderr for long work, if stderr is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

Show = Callable[[str, int, int], None]
"""Called with a description of the current work, the amount done, and the total."""


def on_terminal() -> bool:
    """Whether stderr is a terminal that can show a progress bar."""
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def bar(*more: ProgressColumn) -> Iterator[Show]:
    """Show a progress bar followed by a text and by any `more` columns."""
    with Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.description}", markup=False),
        *more,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not on_terminal(),
    ) as progress:
        task = progress.add_task("starting")

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield show
