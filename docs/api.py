"""Render docs/api.md, the reference of `dlm`'s public names, from their docstrings.

    python docs/api.py

Sources are parsed, not imported, so that the page is the same under every version of Python.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "api.md"
WIDTH: Final = 120
SECTIONS: Final = {
    "Load a model": ("load", "recommended", "Model", "release"),
    "Decode": ("generate", "generate_each", "stream", "infill", "infill_each"),
    "What decoding returns": ("Generation", "Snapshot", "Trajectory", "playback"),
    "Score": ("log_likelihood", "log_likelihoods", "Likelihood"),
    "Constrain": ("Constraint",),
    "Prompts": ("encode_prompts", "encode_infill", "PromptCache"),
    "With transformers": (
        *("as_model", "DiffusionGenerationConfig", "DiffusionGenerationOutput"),
        *("TextDiffusionStreamer", "MaskingCollator", "W8A8Config"),
    ),
}
INTRO: Final = """\
# Python API

Every public name of `dlm`, from its docstring: `python docs/api.py` renders this page. The options
of decoders are in `dlm decoders NAME`, those of commands in `--help`.
"""
METHODS: Final = {
    "Model": ("device", "raw_logits"),
    "Generation": ("tokens_per_forward", "log_probabilities"),
    "Trajectory": ("log_probabilities",),
    "Constraint": ("regex", "choice", "json_schema", "json_object"),
    "PromptCache": ("suits", "tokens"),
}
"""Methods and properties that callers use; the others serve the engine."""
PARTS: Final = ("Args", "Returns", "Yields", "Raises")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def homes() -> dict[str, Path]:
    """Where each public name is defined, out of `dlm/__init__.py`."""
    tree = ast.parse((ROOT / "dlm" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            modules: dict[str, str] = ast.literal_eval(node.value)
            return {n: ROOT / (m.replace(".", "/") + ".py") for n, m in modules.items()}
    raise ValueError("dlm/__init__.py must define _HOMES")


def definition(name: str, path: Path) -> tuple[Definition, list[str]]:
    """The definition of a name, and the lines of its file."""
    text = path.read_text()
    for node in ast.parse(text).body:
        if isinstance(node, Definition) and node.name == name:
            return node, text.splitlines()
    raise ValueError(f"{path} must define {name}")


def signature(name: str, node: Function, *, bound: bool = False) -> str:
    """A call with its defaults; one argument a line if it is long."""
    given = node.args
    plain = [*given.posonlyargs, *given.args][1 if bound else 0 :]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    parts = [
        argument(each, value)
        for each, value in zip(plain, [*defaults, *given.defaults][-len(plain) :], strict=True)
    ]
    if given.vararg:
        parts.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        parts.append("*")
    parts += map(argument, given.kwonlyargs, given.kw_defaults)
    if given.kwarg:
        parts.append(f"**{given.kwarg.arg}")
    call = f"{name}({', '.join(parts)})"
    if len(call) <= WIDTH - 30:
        return call
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def argument(each: ast.arg, default: ast.expr | None) -> str:
    """A parameter and its default."""
    if default is None:
        return each.arg
    value = default.value if isinstance(default, ast.Constant) else None
    return f"{each.arg}={json.dumps(value) if isinstance(value, str) else ast.unparse(default)}"


def body(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring, its sections as lists."""
    for paragraph in re.split(r"\n\n+", doc.strip()):
        first, _, rest = paragraph.partition("\n")
        if first.rstrip(":") in PARTS and first.endswith(":"):
            yield f"**{first.rstrip(':')}**"
            yield items(rest, named=first in ("Args:", "Raises:"))
        elif paragraph.startswith(("    ", "- ")):
            yield paragraph
        else:
            yield prose(paragraph)


def items(text: str, *, named: bool) -> str:
    """The entries of a section, each with the name that it begins with."""
    block = textwrap.dedent(text)
    if not named:
        return prose(block)
    found = re.split(r"\n(?=\S)", block)
    lines = []
    for each in found:
        name, _, what = each.partition(":")
        lines.append(prose(f"- `{name.strip()}`: {what.strip()}", "  "))
    return "\n".join(lines)


def prose(text: str, indent: str = "") -> str:
    """Text in lines of `WIDTH`."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def fields(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """Public fields of a class: the comment at the end of the line, or the string below it."""
    found = []
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
            continue
        name, line = each.target.id, lines[(each.end_lineno or each.lineno) - 1]
        if name.startswith("_") or "ClassVar" in ast.unparse(each.annotation):
            continue
        _, _, said = line[(each.end_col_offset or 0) :].partition("# ")
        said = re.sub(r"^(type|noqa)\b.*?(# |$)", "", said)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            below = str(after.value.value)
            said = f"{said}. {below}" if said else below
        kind = ast.unparse(each.annotation).strip("'\"")
        found.append(prose(f"- `{name}: {kind}`{f' - {said}' if said else ''}", "  "))
    return found


def entry(name: str, path: Path) -> Iterator[str]:
    """One name."""
    node, lines = definition(name, path)
    doc = ast.get_docstring(node) or ""
    yield f"### dlm.{name}"
    if not isinstance(node, ast.ClassDef):
        yield f"```python\n{signature(f'dlm.{name}', node)}\n```"
        yield from body(doc)
        return
    methods = [each for each in node.body if isinstance(each, Function)]
    for made in (each for each in methods if each.name == "__init__"):
        yield f"```python\n{signature(f'dlm.{name}', made, bound=True)}\n```"
    yield from body(doc)
    yield from body_of_init(methods)
    listed = fields(node, lines)
    if listed and "Args:" not in doc:
        yield "**Fields**"
        yield "\n".join(listed)
    for each in methods:
        if each.name in METHODS.get(name, ()):
            yield from method(name, each)


def body_of_init(methods: list[Function]) -> Iterator[str]:
    """What a constructor says of its arguments."""
    for each in methods:
        if each.name == "__init__":
            yield from list(body(ast.get_docstring(each) or ""))[1:]


def method(owner: str, node: Function) -> Iterator[str]:
    """A public method or property of a class."""
    kinds = {ast.unparse(each) for each in node.decorator_list}
    yield f"#### {owner}.{node.name}"
    if "property" not in kinds:
        call = signature(f"dlm.{owner}.{node.name}", node, bound="staticmethod" not in kinds)
        yield f"```python\n{call}\n```"
    yield from body(ast.get_docstring(node) or "")


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public name is in no section.
    """
    places = homes()
    missing = places.keys() - {name for names in SECTIONS.values() for name in names}
    if missing:
        raise ValueError(f"SECTIONS must hold every public name, got none with {sorted(missing)}")
    links = ", ".join(f"[{each.lower()}](#{each.lower().replace(' ', '-')})" for each in SECTIONS)
    parts = [INTRO, prose(f"Sections: {links}.")]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += entry(name, places[name])
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
