"""Loading a model for a command, with no more noise than it is worth."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from dlm.models.model import Model


def load_model(name: str | None, device: str | None, dtype: str) -> "Model":
    """The model, with the bar of transformers for one that takes its time.

    The built-in model loads in a moment and needs none; nor does a stderr that is no terminal.
    """
    console = Console(stderr=True)
    if name is not None and console.is_terminal:
        from dlm.models.loading import load

        return load(name, device=device, dtype=dtype)
    with console.status("loading"), silence():
        from dlm.models.loading import load

        return load(name, device=device, dtype=dtype)


@contextmanager
def silence() -> Iterator[None]:
    """Keep the progress bars of transformers off."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
