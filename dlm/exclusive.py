"""Locks on output folders that only one run at a time may write to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs. The lock goes with the process, however that ends.

    Raises:
        ValueError: another run holds the folder, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"what a run is written to must be a folder, got the file {str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{str(folder)!r} must be of one run at a time, and another one is on: wait for "
                "its end or give another folder"
            ) from None
        yield
