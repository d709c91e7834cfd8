"""The process that executes a solution; nothing that happens in it is trusted.

It holds no secret, and its only way out is two pipes to the judge, which asks it for names and
calls functions. Whatever the solution does to this process, it can only make its own answers wrong.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from dlm.eval.sandbox.link import Broken, Link

TYPE_CHECKING = False  # importing `typing` and `collections` takes longer than most checks
if TYPE_CHECKING:
    from typing import Any

NAME = "solution"  # not __main__: a solution is imported, not run


def main() -> None:
    """Answer the judge until it closes the link."""
    reader, writer = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)  # the input and output of a solution are discarded
    os.close(null)
    link = Link(reader, writer)
    module = ModuleType(NAME)
    sys.modules[NAME] = module

    def load(source: str) -> None:
        """Execute the solution."""
        if "random" in source:
            import random

            random.seed(0)  # makes scores reproducible
        exec(compile(source, "<solution>", "exec", dont_inherit=True), module.__dict__)

    def fetch(names: list[str]) -> dict[str, Any]:
        """The globals with these names: copies of data, and the names of modules."""
        found = {name: module.__dict__[name] for name in names if name in module.__dict__}
        return {
            name: ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)
            for name, value in found.items()
            if not hasattr(type(value), "__next__")  # an iterator would be used up
        }

    link.export(load)
    link.export(fetch)
    try:
        link.serve()
    except Broken:
        os._exit(0)
