"""Generators whose forwards keep nothing for a backward pass."""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def inferring(make: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """A generator in `torch.inference_mode`, as whose decorator does, until the interpreter ends.

    What is left unfinished then is left so: the modules are gone that the mode is entered by.
    """
    over = sys.is_finalizing  # which this module would not have any more

    @wraps(make)
    def inferred(*args: P.args, **options: P.kwargs) -> Iterator[T]:
        made = iter(make(*args, **options))
        try:
            while True:
                with torch.inference_mode():
                    try:
                        one = next(made)
                    except StopIteration:
                        return
                yield one
        finally:
            close = getattr(made, "close", None)
            if close is not None and not over():
                with torch.inference_mode():
                    close()

    return inferred
