"""Constraints of requests, compiled once and kept for requests that ask for the same."""

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

MOST: Final = 32  # constraints that are kept
ENTRIES: Final = 1 << 27  # numbers in the tables of all that are kept: a gigabyte
AT_ONCE: Final = 2  # compiled at a time: compiling one may take gigabytes
WAITING: Final = 16  # requests, so that threads are left to read other bodies

MADE: Final[Mapping[str, Callable[[Model, str], Constraint]]] = {
    "regex": Constraint.regex,
    "choice": lambda model, text: Constraint.choice(model, json.loads(text)),
    "json_schema": Constraint.json_schema,
    "json_object": lambda model, _: Constraint.json_object(model),
    "calls": lambda model, text: Constraint.of(model, f"*calls of {text}", calls_of(text)),
}


class Constraints:
    """The compiled constraints of one model, by rule; keeps those used last."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.kept: OrderedDict[tuple[str, str], Constraint | str] = OrderedDict()
        self.making = Semaphore(AT_ONCE)
        self.waiting = Semaphore(WAITING)

    def of(self, model: Model, rule: Rule) -> Constraint:
        """The constraint of a rule. Concurrent requests for it compile it at most `AT_ONCE` times.

        Raises:
            ValueError: there is none; the message names the rule's field.
            Busy: too many requests are waiting for theirs.
        """
        found = self.find(rule)
        if found is None:
            found = self.make(rule, model)
        if isinstance(found, str):
            raise under(rule.field, found)
        return found

    def make(self, rule: Rule, model: Model) -> Constraint | str:
        """Compile the constraint of a rule; returns it, or why there is none. Keeps either."""
        if not self.waiting.acquire(blocking=False):
            raise Busy("too many requests wait for what they hold answers to: ask again later")
        try:
            with self.making:
                found = self.find(rule)  # another request may have compiled it meanwhile
                return found or self.keep(rule, made(model, rule))
        finally:
            self.waiting.release()

    def find(self, rule: Rule) -> Constraint | str | None:
        """The constraint of a rule, or why there is none, if that is kept."""
        key = rule.kind, rule.text
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, rule: Rule, made: Constraint | str) -> Constraint | str:
        """Keep a result, and drop those used longest ago that there is no room for."""
        with self.lock:
            self.kept[rule.kind, rule.text] = made
            while len(self.kept) > MOST or (
                len(self.kept) > 1 and sum(map(entries, self.kept.values())) > ENTRIES
            ):
                self.kept.popitem(last=False)
        return made


def made(model: Model, rule: Rule) -> Constraint | str:
    """Compile the constraint of a rule; returns it, or why there is none.

    The reason is returned as text: the error itself would keep the frames it went through alive,
    and what they hold.
    """
    try:
        return MADE[rule.kind](model, rule.text)
    except ValueError as error:
        return str(error)


def entries(kept: Constraint | str) -> int:
    """Approximate size in numbers: a table, and edges stored in four ways, padded."""
    if isinstance(kept, str):
        return 0
    return kept.automaton.following.numel() + 8 * len(kept.automaton.pair)
