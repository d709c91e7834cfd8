"""Plots by matplotlib, which the extra `plot` installs."""

from importlib import import_module
from typing import Any


def pyplot(option: str) -> Any:
    """Matplotlib's plotting interface with a file backend, for an option that needs it.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib").use("agg")
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise ValueError(
            f'{option} needs matplotlib, of the extra plot: pip install -e ".[plot]"'
        ) from None
