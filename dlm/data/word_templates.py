"""The texts, steps and number ranges of the word problems.

Slots: n and m are two names, t and u two kinds of objects, a to d numbers of at least 2. An operand
of a step is a slot, the result of an earlier step (r1, r2) or a literal number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = (
    "Ann", "Ben", "Dan", "Eva", "Finn", "Ida", "Jack", "Kim",
    "Leo", "Lily", "Max", "Mia", "Nora", "Omar", "Sam", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "balls", "books", "cards", "coins", "cups", "keys", "pears",
    "pens", "rings", "shells", "stamps", "stones", "toys",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of problem."""

    text: str
    steps: str  # separated by spaces, e.g. "a+b r1-c"
    ranges: Mapping[str, tuple[int, int]]  # inclusive, one per number slot


TEMPLATES = (
    Template(
        "{n} has {a} {t}, finds {b} more and loses {c}. How many {t} does {n} have now?",
        "a+b r1-c",
        {"a": (3, 25), "b": (2, 20), "c": (2, 20)},
    ),
    Template(
        "{n} has {a} bags with {b} {t} each and gives {c} {t} to {m}. How many {t} are left?",
        "a*b r1-c",
        {"a": (2, 9), "b": (2, 6), "c": (2, 20)},
    ),
    Template(
        "{n} has {a} {t}. {m} has {b} more than {n}. How many {t} do both have?",
        "a+b a+r1",
        {"a": (2, 20), "b": (2, 15)},
    ),
    Template(
        "{n} has {a} {t}. {m} has {b} fewer than {n}. How many {t} do both have?",
        "a-b a+r1",
        {"a": (5, 28), "b": (2, 15)},
    ),
    Template(
        "{n} finds {a} red {t} and {b} blue {t} and sorts them evenly into {c} boxes. "
        "How many {t} are in each box?",
        "a+b r1/c",
        {"a": (2, 20), "b": (2, 20), "c": (2, 6)},
    ),
    Template(
        "{n} buys {a} {t} for {b} dollars each and pays with {c} dollars. "
        "How many dollars come back?",
        "a*b c-r1",
        {"a": (2, 8), "b": (2, 6), "c": (10, 50)},
    ),
    Template(
        "A box holds {a} {t}. {n} fills {b} boxes and {m} fills {c}. How many {t} is that?",
        "b+c a*r1",
        {"a": (2, 6), "b": (2, 5), "c": (2, 5)},
    ),
    Template(
        "{n} reads {a} pages a day for {b} days. The book has {c} pages. How many pages are left?",
        "a*b c-r1",
        {"a": (3, 9), "b": (2, 6), "c": (15, 60)},
    ),
    Template(
        "{n} makes {a} {t} an hour for {b} hours. Then {c} break and {m} brings {d}. "
        "How many {t} are there?",
        "a*b r1-c r2+d",
        {"a": (2, 8), "b": (2, 5), "c": (2, 10), "d": (2, 12)},
    ),
    Template(
        "{n} shares {a} {t} evenly with {b} friends. How many {t} does {n} keep?",
        "b+1 a/r1",
        {"a": (6, 60), "b": (2, 8)},
    ),
    Template(
        "{n} is {a} years old. {m} is {b} times as old. How old will {m} be in {c} years?",
        "a*b r1+c",
        {"a": (3, 12), "b": (2, 4), "c": (2, 15)},
    ),
    Template(
        "A hall has {a} rows of {b} seats. People take {c} seats. How many seats are free?",
        "a*b r1-c",
        {"a": (2, 9), "b": (3, 7), "c": (2, 30)},
    ),
    Template(
        "A bus carries {a} people. At a stop {b} get off and {c} get on. "
        "How many people are on the bus?",
        "a-b r1+c",
        {"a": (8, 40), "b": (2, 20), "c": (2, 15)},
    ),
    Template(
        "{n} runs {a} laps a day and {m} runs {b}. How many laps do both run in {c} days?",
        "a+b r1*c",
        {"a": (2, 8), "b": (2, 8), "c": (2, 4)},
    ),
    Template(
        "{n} saves {a} dollars a week for {b} weeks, spends {c} and earns {d}. "
        "How many dollars does {n} have?",
        "a*b r1-c r2+d",
        {"a": (2, 9), "b": (2, 5), "c": (2, 15), "d": (2, 15)},
    ),
    Template(
        "{n} has {a} {t} and {b} {u}. {m} takes {c} {t} and {d} {u}. "
        "How many things does {n} have left?",
        "a-c b-d r1+r2",
        {"a": (5, 20), "b": (5, 20), "c": (2, 9), "d": (2, 9)},
    ),
    Template(
        "{n} has {a} hens. Each hen lays {b} eggs. {n} sells {c} eggs and eats {d}. "
        "How many eggs are left?",
        "a*b r1-c r2-d",
        {"a": (3, 9), "b": (2, 5), "c": (2, 15), "d": (2, 8)},
    ),
    Template(
        "{n} bakes {a} trays of {b} buns and puts them evenly on {c} plates. "
        "How many buns are on each plate?",
        "a*b r1/c",
        {"a": (2, 8), "b": (2, 8), "c": (2, 6)},
    ),
    Template(
        "{m} has {a} {t}. {n} has twice as many and gives away {b}. "
        "How many {t} does {n} have now?",
        "a*2 r1-b",
        {"a": (4, 25), "b": (2, 20)},
    ),
    Template(
        "{n} has {a} {t}, keeps {b} and splits the rest evenly among {c} friends. "
        "How many {t} does each friend get?",
        "a-b r1/c",
        {"a": (8, 45), "b": (2, 15), "c": (2, 6)},
    ),
    Template(
        "A room has {a} tables with {b} chairs each. {n} brings {c} more chairs. "
        "How many chairs are there?",
        "a*b r1+c",
        {"a": (2, 9), "b": (2, 6), "c": (2, 20)},
    ),
    Template(
        "{n} needs {a} {t}. {n} has {b} and {m} brings {c}. How many {t} are still needed?",
        "b+c a-r1",
        {"a": (12, 50), "b": (2, 20), "c": (2, 15)},
    ),
)
