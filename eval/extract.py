r"""Reading of answers from text, as shared by all tasks.

Every reader accepts any text, returns an answer or None, and takes time linear in the text.
"""

import ast
import re
import textwrap
import warnings
from collections import deque
from dataclasses import dataclass

INDENT = "    "
PYTHON = ("python", "python3", "py")
THINKS, THOUGHT = "<think>", "</think>"

_BOX = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FENCE = re.compile(r"`+|~{3,}")
_LANGUAGE = re.compile(r"[ \t]*([\w+#.-]*)")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_BINDING = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom),
    *(ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr),
)
_NESTING = (ast.If, ast.Try, ast.With, ast.For, ast.While)
_STARTS_CODE = re.compile(
    r"(?:async\s+def|def|class)\s|import\s+\w|from\s+[\w.]+\s+import\s|[@#]|[A-Za-z_][\w.]*\s*=[^=]"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block of a Markdown text."""

    language: str  # lower case; "" if the fence names none
    text: str  # without the indentation that all lines share
    closed: bool


def without_thoughts(text: str) -> str:
    """The text without the thoughts between `<think>` and `</think>`.

    A thought that the prompt has opened lacks its opening tag in the text. A thought that is never
    closed stays, because it may be all there is.
    """
    *closed, answer = text.split(THOUGHT)
    starts = (each.partition(THINKS) for each in closed)
    return "".join(before for before, opened, _ in starts if opened) + answer


def last_boxed(text: str) -> str | None:
    r"""The content of the last closed, non-empty `\boxed{...}`; of nested ones, the innermost."""
    open_: list[tuple[bool, int, int]] = []  # of each brace: whether of a box, start, content
    best: tuple[int, str] | None = None
    for token in _BOX.finditer(text):
        if token.group().endswith("{") and token.group() != r"\{":
            open_.append((token.group() != "{", token.start(), token.end()))
        elif token.group() == "}" and open_:
            is_box, start, content = open_.pop()
            inside = text[content : token.start()].strip() if is_box else ""
            if inside and (best is None or start > best[0]):
                best = start, inside
    return None if best is None else best[1]


def last_number(text: str) -> str | None:
    """The last number, including signs for money and thousands.

    As the filter `flexible-extract` of lm-eval 0.4.13, gsm8k.yaml: a run of two or more characters
    of `$0-9.,` is a number, whether it has digits or not.
    """
    found = last_match(_NUMBER, text)
    return None if found is None else found.group()


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of the non-overlapping matches."""
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def code_blocks(text: str) -> list[Block]:
    """The fenced blocks in order; an unclosed one ends with the text.

    A fence may follow other words on its line, as in `Here it is: ```python`.
    """
    blocks: list[Block] = []
    fence, language, lines = "", "", list[str]()
    for line in text.split("\n"):
        if not fence:
            fence, language = _opening(line)
            lines = []
        elif (bare := line.rstrip()).endswith(fence):
            last = bare.rstrip(fence[0])
            blocks.append(_block(language, [*lines, last] if last.strip() else lines, closed=True))
            fence = ""
        else:
            lines.append(line)
    if fence:
        blocks.append(_block(language, lines, closed=False))
    return blocks


def _opening(line: str) -> tuple[str, str]:
    """The fence and the language of a line that opens a block; "" and "" for any other line.

    Backticks are a fence if they are the only ones on their line. Tildes are a fence at the
    beginning of the line; otherwise the last ones are.
    """
    # This searches the line once: a pattern for the whole line would try every pair of fences.
    runs = list(_FENCE.finditer(line))
    ticks = [each for each in runs if each[0][0] == "`"]
    if not runs or len(ticks) > 1:
        return "", ""
    first = runs[0]
    begins = not line[: first.start()].strip(" \t")
    fence = ticks[0] if ticks else first if begins else runs[-1]
    if len(fence[0]) < 3 or line[: fence.start()].endswith("~"):
        return "", ""
    language = _LANGUAGE.match(line, fence.end())
    assert language is not None  # it also matches the empty text
    return fence[0], language[1].lower()


def _block(language: str, lines: list[str], *, closed: bool) -> Block:
    return Block(language, textwrap.dedent("\n".join(lines)), closed)


def defines(code: str, name: str) -> bool:
    """Whether a function of this name starts in the first column."""
    return (
        re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", code, re.MULTILINE) is not None
    )


def binds(code: str, name: str) -> bool:
    """Whether code is a module that binds this name, as `f = g` and `if x: def f` do."""
    if name not in code:
        return False
    tree = parsed(code)
    found = [] if tree is None else [*tree.body]
    while found:
        statement = found.pop()
        if name in _bound(statement):
            return True
        if isinstance(statement, _NESTING):
            inner = (getattr(statement, part, []) for part in ("body", "orelse", "finalbody"))
            found += [each for part in inner for each in part]
            found += [each for one in getattr(statement, "handlers", []) for each in one.body]
    return False


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement binds, not counting the statements inside it."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {each.asname or each.name for each in statement.names}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def block_defining(text: str, names: tuple[str, ...], but: str = "") -> str | None:
    """The first block that defines one of `names`, with Python blocks before other languages.

    If none does, the first block that binds one. A block that only repeats `but` does not count.
    """
    blocks = code_blocks(text)
    ranked = [each.text for each in blocks if each.language in PYTHON]
    texts = [*ranked, *(each.text for each in blocks)]
    own = [each for each in texts if not (but and each.strip() == but.strip())]
    for rule in (defines, binds):
        for each in own:
            if any(rule(each, name) for name in names):
                return each
    return None


def first_block(text: str) -> str | None:
    """The first non-empty block, with Python blocks before other languages."""
    blocks = [each for each in code_blocks(text) if each.text.strip()]
    ranked = [each for each in blocks if each.language in PYTHON]
    return next((each.text for each in (*ranked, *blocks)), None)


def bare_code(text: str, names: tuple[str, ...]) -> str | None:
    """Unfenced code in prose that defines one of `names`, with the code lines around it.

    A line counts as code if it is blank, indented, or begins like a module statement. The result is
    the run of such lines around the definition.
    """
    lines = textwrap.dedent(text).split("\n")
    at = next(
        (n for n, line in enumerate(lines) if any(defines(line, each) for each in names)), None
    )
    if at is None:
        return None
    first = last = at
    while first and _is_code(lines[first - 1]):
        first -= 1
    while last + 1 < len(lines) and _is_code(lines[last + 1]):
        last += 1
    return "\n".join(lines[first : last + 1]).strip("\n")


def _is_code(line: str) -> bool:
    """Whether a line may belong to a module, by its first characters."""
    return not line.strip() or line[0] in " \t)]}" or _STARTS_CODE.match(line) is not None


def parsed(code: str) -> ast.Module | None:
    """The syntax tree, or None if the code is not Python."""
    try:
        with warnings.catch_warnings():  # about escapes such as a "\\d" that is not raw
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def whole_module(text: str) -> str | None:
    """The whole text if it is a module, less its prose: words such as `Sure` parse as names."""
    code = textwrap.dedent(text)
    tree = parsed(code)
    if tree is None or not _compiles(code):
        return None
    left = without(code, tree, {each for each in tree.body if _is_prose(each)})
    return left if left.strip() else None


def without_tail(code: str) -> str:
    """A module without the trailing statements that bind nothing: its calls and tests."""
    tree = parsed(code)
    assert tree is not None
    last = max((n for n, each in enumerate(tree.body, start=1) if _binds(each)), default=0)
    return without(code, tree, {*tree.body[last:]})


def without(code: str, tree: ast.Module, dropped: set[ast.stmt]) -> str:
    """A module without the lines of some statements, except lines shared with other statements.

    Args:
        code: the module.
        tree: the parsed module.
        dropped: the statements to drop, from the body of the tree.
    """
    kept = {line for each in tree.body if each not in dropped for line in _lines(each)}
    gone = {line for each in dropped for line in _lines(each)} - kept
    numbered = enumerate(code.split("\n"), start=1)
    return "\n".join(line for number, line in numbered if number not in gone)


def _lines(statement: ast.stmt) -> range:
    """The line numbers of a statement, including its decorators."""
    first = [each.lineno for each in getattr(statement, "decorator_list", [])]
    return range(min([statement.lineno, *first]), (statement.end_lineno or statement.lineno) + 1)


def _binds(statement: ast.stmt) -> bool:
    """Whether a statement, or one inside it, binds or assigns something."""
    return any(isinstance(each, _BINDING) for each in ast.walk(statement))


def _compiles(code: str) -> bool:
    """Whether Python also compiles the module: `return` outside a function parses, but does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<output>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is_prose(statement: ast.stmt) -> bool:
    """Whether a statement does nothing that a module needs, as `Sure, here` and `Note: short` do.

    A bare string may be a docstring, so it is kept.
    """
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    if not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Constant):
        return False
    return not any(isinstance(each, ast.Call) for each in ast.walk(statement.value))


def as_body(code: str) -> str:
    """Statements as a function body: indented by four spaces, unless they are already indented."""
    first = next((line for line in code.split("\n") if line.strip()), "")
    return code if first[:1] in (" ", "\t") else textwrap.indent(code, INDENT)


def begins_indented(text: str) -> bool:
    """Whether the first non-blank line is indented, and so continues a function."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t")


def joined(*parts: str) -> str:
    """Join parts of a module, with imports from `__future__` first, as Python requires."""
    whole = "\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
    future = list(dict.fromkeys(line.rstrip("\n") for line in _FUTURE.findall(whole)))
    return "".join(line + "\n" for line in future) + _FUTURE.sub("", whole) if future else whole
