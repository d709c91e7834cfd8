"""The kinds of functions: names, docstrings and accepted bodies.

Slots: x and y are arguments, k is a constant, name is the function's name. No two kinds share a
docstring, so that a prompt identifies its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
ARGUMENTS = {
    "number": ("x", "n", "a", "b", "num", "value"),
    "list": ("xs", "items", "nums", "values", "data"),
    "string": ("s", "t", "text", "word", "line"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of function."""

    argument: str  # a key of ARGUMENTS
    names: tuple[str, ...]
    docs: tuple[str, ...]
    bodies: tuple[str, ...]  # generation uses the first
    constants: tuple[int, int] = (2, 20)  # inclusive
    slots: tuple[str, ...] = ("x",)


def _loop(start: str, update: str) -> str:
    """Returns the body that folds a list into `total`."""
    return f"total = {start}\nfor v in {{x}}:\n    {update}\nreturn total"


NUMBER_KINDS = (
    Kind(
        "number",
        ("add_{k}", "plus_{k}", "increase_by_{k}"),
        ("Return {x} plus {k}.", "Add {k} to {x}."),
        ("return {x} + {k}",),
    ),
    Kind(
        "number",
        ("subtract_{k}", "minus_{k}", "decrease_by_{k}"),
        ("Return {x} minus {k}.", "Subtract {k} from {x}."),
        ("return {x} - {k}",),
    ),
    Kind(
        "number",
        ("times_{k}", "multiply_by_{k}", "scale_by_{k}"),
        ("Return {x} times {k}.", "Multiply {x} by {k}."),
        ("return {x} * {k}",),
    ),
    Kind(
        "number",
        ("modulo_{k}", "remainder_{k}"),
        ("Return {x} modulo {k}.", "Return the remainder of {x} divided by {k}."),
        ("return {x} % {k}",),
    ),
    Kind(
        "number",
        ("power_{k}", "to_the_{k}"),
        ("Return {x} to the power {k}.",),
        ("return {x} ** {k}", "return pow({x}, {k})"),
        constants=(2, 9),
    ),
    Kind(
        "number",
        ("above_{k}", "is_above_{k}", "more_than_{k}"),
        ("Return whether {x} is greater than {k}.", "Check if {x} is above {k}."),
        ("return {x} > {k}",),
    ),
    Kind(
        "number",
        ("below_{k}", "is_below_{k}", "less_than_{k}"),
        ("Return whether {x} is less than {k}.", "Check if {x} is below {k}."),
        ("return {x} < {k}",),
    ),
    Kind(
        "number",
        ("multiple_of_{k}", "divides_by_{k}"),
        ("Return whether {x} is a multiple of {k}.", "Check if {k} divides {x}."),
        ("return {x} % {k} == 0", "return not {x} % {k}"),
    ),
    Kind(
        "number",
        ("larger", "max_of_two", "pick_larger"),
        ("Return the larger of {x} and {y}.",),
        ("return max({x}, {y})", "return max({y}, {x})"),
        slots=("x", "y"),
    ),
    Kind(
        "number",
        ("add", "sum_of_two", "plus"),
        ("Return the sum of {x} and {y}.", "Add {x} and {y}."),
        ("return {x} + {y}", "return {y} + {x}"),
        slots=("x", "y"),
    ),
)

LIST_KINDS = (
    Kind(
        "list",
        ("total", "sum_all", "add_all"),
        ("Return the sum of {x}.",),
        ("return sum({x})",),
    ),
    Kind(
        "list",
        ("largest", "max_of", "find_max"),
        ("Return the largest of {x}.", "Return the maximum of {x}."),
        ("return max({x})",),
    ),
    Kind(
        "list",
        ("smallest", "min_of", "find_min"),
        ("Return the smallest of {x}.", "Return the minimum of {x}."),
        ("return min({x})",),
    ),
    Kind(
        "list",
        ("size", "count_all", "length"),
        ("Return the length of {x}.", "Count the items of {x}."),
        ("return len({x})",),
    ),
    Kind(
        "list",
        ("backwards", "reverse", "flip"),
        ("Return {x} in reverse order.", "Reverse {x}."),
        ("return {x}[::-1]", "return list(reversed({x}))"),
    ),
    Kind(
        "list",
        ("in_order", "sort_all", "ordered"),
        ("Return {x} in sorted order.", "Sort {x}."),
        ("return sorted({x})",),
    ),
    Kind(
        "list",
        ("evens", "even_only", "keep_even"),
        ("Return the even numbers of {x}.", "Keep the even numbers of {x}."),
        ("return [v for v in {x} if v % 2 == 0]", "return [v for v in {x} if not v % 2]"),
    ),
    Kind(
        "list",
        ("keep_above_{k}", "above_{k}"),
        ("Return the numbers of {x} above {k}.", "Keep the numbers of {x} above {k}."),
        ("return [v for v in {x} if v > {k}]",),
    ),
    Kind(
        "list",
        ("add_{k}_to_all", "raise_all_by_{k}"),
        ("Add {k} to each number of {x}.",),
        ("return [v + {k} for v in {x}]",),
    ),
    Kind(
        "list",
        ("times_{k}_each", "scale_all_by_{k}"),
        ("Multiply each number of {x} by {k}.",),
        ("return [v * {k} for v in {x}]",),
    ),
    Kind(
        "list",
        ("first_{k}", "take_{k}"),
        ("Return the first {k} items of {x}.",),
        ("return {x}[:{k}]", "return {x}[0:{k}]"),
    ),
    Kind(
        "list",
        ("last_{k}", "tail_{k}"),
        ("Return the last {k} items of {x}.",),
        ("return {x}[-{k}:]",),
    ),
    Kind(
        "list",
        ("total", "loop_sum", "add_all"),
        ("Add up {x} with a loop.",),
        (_loop("0", "total += v"),),
    ),
    Kind(
        "list",
        ("product", "loop_product", "multiply_all"),
        ("Multiply all of {x} with a loop.",),
        (_loop("1", "total *= v"),),
    ),
    Kind(
        "list",
        ("count_above_{k}", "how_many_above_{k}"),
        ("Count the numbers of {x} above {k} with a loop.",),
        (_loop("0", "if v > {k}:\n        total += 1"),),
    ),
)

STRING_KINDS = (
    Kind(
        "string",
        ("shout", "to_upper", "upper_case"),
        ("Return {x} in upper case.",),
        ("return {x}.upper()",),
    ),
    Kind(
        "string",
        ("whisper", "to_lower", "lower_case"),
        ("Return {x} in lower case.",),
        ("return {x}.lower()",),
    ),
    Kind(
        "string",
        ("join", "concat", "glue"),
        ("Return {x} followed by {y}.", "Join {x} and {y}."),
        ("return {x} + {y}",),
        slots=("x", "y"),
    ),
    Kind(
        "string",
        ("repeat_{k}", "copy_{k}"),
        ("Repeat {x} {k} times.",),
        ("return {x} * {k}",),
    ),
    Kind(
        "string",
        ("starts_with", "has_prefix"),
        ("Return whether {x} starts with {y}.",),
        ("return {x}.startswith({y})",),
        slots=("x", "y"),
    ),
    Kind(
        "string",
        ("longer_than_{k}", "is_longer_than_{k}"),
        ("Return whether {x} is longer than {k}.",),
        ("return len({x}) > {k}",),
    ),
)

KINDS = NUMBER_KINDS + LIST_KINDS + STRING_KINDS
