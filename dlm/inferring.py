"""Generators that run in inference mode."""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def inferring(make: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Run a generator in `torch.inference_mode`, like its decorator, until the interpreter exits.

    At exit an unfinished generator is left as it is: the modules that enter the mode are gone.
    """
    over = sys.is_finalizing  # the module's globals are gone by then

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
