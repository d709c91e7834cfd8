"""Small Python functions to complete from a signature and a docstring.

Answers are never run. The docstring is parsed back into its kind and constants, which fill in the
reference bodies of that kind. The syntax trees of answer and references are compared after
normalisation.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from random import Random

from dlm.data.example import Example
from dlm.data.function_kinds import ARGUMENTS, KINDS, NUMBER_WORDS, Kind
from dlm.data.patterns import template_pattern

_LONGEST_RESPONSE = 2000  # characters; bounds the parser's work on invalid answers
_INDENT = "    "
_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def _prompt_template(kind: Kind, doc: str) -> str:
    """Returns the prompt with slots for the name, the arguments and the constant."""
    arguments = ", ".join(f"{{{slot}}}" for slot in kind.slots)
    return f'def {{name}}({arguments}):\n{_INDENT}"""{doc}"""\n'


def _fill_body(body: str, slots: dict[str, str]) -> str:
    """Fills in a reference body's slots and indents it."""
    return "\n".join(_INDENT + line for line in body.format(**slots).split("\n"))


def generate(rng: Random) -> Example:
    """Draws a kind, a wording, a name, argument names and a constant."""
    kind = rng.choice(KINDS)
    arguments = rng.sample(ARGUMENTS[kind.argument], len(kind.slots))
    slots = dict(zip(kind.slots, arguments, strict=True))
    constant = rng.randint(*kind.constants)
    word = NUMBER_WORDS[constant] if constant < len(NUMBER_WORDS) else str(constant)
    slots |= {"k": str(constant), "name": rng.choice(kind.names).format(k=word)}
    prompt = _prompt_template(kind, rng.choice(kind.docs)).format(**slots)
    return Example("functions", prompt, _fill_body(kind.bodies[0], slots))


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], Kind], ...]:
    """Compiles every wording of every kind once."""
    numbers = frozenset({"k"})
    return tuple(
        (template_pattern(_prompt_template(kind, doc).strip(), numbers), kind)
        for kind in KINDS
        for doc in kind.docs
    )


def references(prompt: str) -> tuple[str, ...]:
    """Returns the accepted bodies for a generated prompt, the preferred one first."""
    for pattern, kind in _patterns():
        match = pattern.fullmatch(prompt.strip())
        if match is not None:
            return tuple(_fill_body(body, match.groupdict()) for body in kind.bodies)
    return ()


def is_correct(prompt: str, response: str) -> bool:
    """Tells whether the completed function has the same syntax tree as an accepted one."""
    bodies = references(prompt)
    if not bodies or len(response) > _LONGEST_RESPONSE:
        return False
    head = prompt.strip() + "\n"
    accepted = {_normal_form(head + body) for body in bodies} - {None}
    body = response.strip("\r\n").rstrip()
    # A chat pipeline may have stripped the first line's indentation.
    return any(_normal_form(head + text) in accepted for text in (body, _INDENT + body.lstrip()))


def _normal_form(source: str) -> str | None:
    """Returns a canonical dump of `source`, or None if it is not exactly one function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
            return None
        function = tree.body[0]
        function.body = function.body[1:]  # the docstring
        return ast.dump(_Normaliser(_local_names(function)).visit(function))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _local_names(function: ast.FunctionDef) -> dict[str, str]:
    """Maps the names that the function assigns, except arguments, to "0", "1", ..."""
    arguments = {argument.arg for argument in function.args.args}
    names: dict[str, str] = {}  # the new names are no identifiers, so they cannot clash
    for node in ast.walk(function):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        if isinstance(node, ast.Name) and stored and node.id not in arguments:
            names.setdefault(node.id, str(len(names)))
    return names


class _Normaliser(ast.NodeTransformer):
    """Renames local names and undoes spelling choices that do not change the meaning."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Renames a local name."""
        return ast.Name(self._names.get(node.id, node.id), node.ctx)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """Writes `v += x` as `v = v + x`."""
        if not isinstance(node.target, ast.Name):
            return self.generic_visit(node)
        value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        assignment: ast.AST = self.visit(ast.Assign([node.target], value))
        return assignment

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Writes a number on the right of `+` and `*`."""
        self.generic_visit(node)
        commutes = isinstance(node.op, ast.Add | ast.Mult)
        if commutes and _is_number(node.left) and not _is_number(node.right):
            node.left, node.right = node.right, node.left
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Writes a number on the right of a single comparison."""
        self.generic_visit(node)
        flipped = _FLIPPED.get(type(node.ops[0]))
        if len(node.ops) == 1 and flipped is not None and _is_number(node.left):
            return ast.Compare(node.comparators[0], [flipped()], [node.left])
        return node


def _is_number(node: ast.expr) -> bool:
    """Tells whether a node is an integer literal."""
    return isinstance(node, ast.Constant) and type(node.value) is int
