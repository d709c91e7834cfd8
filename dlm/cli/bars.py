"""A bar on stderr for long work, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

Show = Callable[[str, int, int], None]
"""Called with what is under way, how much of it is done, and of how much."""


def on_terminal() -> bool:
    """Whether a bar would be seen."""
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def bar(*more: ProgressColumn) -> Iterator[Show]:
    """A bar with a text behind it, and more columns behind that."""
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
