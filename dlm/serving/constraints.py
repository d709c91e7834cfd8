"""Constraints of requests, compiled once and kept for those that ask for the same."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock, Semaphore
from typing import Final

from dlm.constraints.constraint import Constraint
from dlm.models.model import Model
from dlm.serving.fields import under
from dlm.serving.rules import Rule
from dlm.serving.tools import calls_of
from dlm.serving.work import Busy

MOST: Final = 32  # that are kept
ENTRIES: Final = 1 << 27  # of the tables of those that are kept: a gigabyte
AT_ONCE: Final = 2  # that are made: reading one may take gigabytes
WAITING: Final = 16  # requests, so that their threads are not all that the server reads bodies with

MADE: Final[Mapping[str, Callable[[Model, str], Constraint]]] = {
    "regex": Constraint.regex,
    "choice": lambda model, text: Constraint.choice(model, json.loads(text)),
    "json_schema": Constraint.json_schema,
    "json_object": lambda model, _: Constraint.json_object(model),
    "calls": lambda model, text: Constraint.of(model, f"*calls of {text}", calls_of(text)),
}


class Constraints:
    """What rules of requests come to for one model; those used last are kept."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.kept: OrderedDict[tuple[str, str], Constraint | str] = OrderedDict()
        self.making = Semaphore(AT_ONCE)
        self.waiting = Semaphore(WAITING)

    def of(self, model: Model, rule: Rule) -> Constraint:
        """That of a rule. Requests that ask for the same at a time make it `AT_ONCE` times at most.

        Raises:
            ValueError: there is none, under the name of the rule's field.
            Busy: too many wait for theirs.
        """
        found = self.find(rule)
        if found is None:
            found = self.make(rule, model)
        if isinstance(found, str):
            raise under(rule.field, found)
        return found

    def make(self, rule: Rule, model: Model) -> Constraint | str:
        """That of a rule, or why there is none, which may have taken as long to learn."""
        if not self.waiting.acquire(blocking=False):
            raise Busy("too many requests wait for what they hold answers to: ask again later")
        try:
            with self.making:
                found = self.find(rule)  # another may have made it meanwhile
                return found or self.keep(rule, made(model, rule))
        finally:
            self.waiting.release()

    def find(self, rule: Rule) -> Constraint | str | None:
        """That of a rule, if it is kept."""
        key = rule.kind, rule.text
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, rule: Rule, made: Constraint | str) -> Constraint | str:
        """Keep one, and give up those used longest ago that there is no room for."""
        with self.lock:
            self.kept[rule.kind, rule.text] = made
            while len(self.kept) > MOST or (
                len(self.kept) > 1 and sum(map(entries, self.kept.values())) > ENTRIES
            ):
                self.kept.popitem(last=False)
        return made


def made(model: Model, rule: Rule) -> Constraint | str:
    """That of a rule, or why there is none.

    Not the error: that holds the frames it went through, and what was made of the rule in them.
    """
    try:
        return MADE[rule.kind](model, rule.text)
    except ValueError as error:
        return str(error)


def entries(kept: Constraint | str) -> int:
    """Numbers that one holds, nearly: a table, and edges in four ways, padded."""
    if isinstance(kept, str):
        return 0
    return kept.automaton.following.numel() + 8 * len(kept.automaton.pair)
