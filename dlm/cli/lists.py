"""`dlm decoders` and `dlm models`."""

import inspect
import json as json_format
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from textwrap import fill
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.cli.options import JSON
from dlm.cli.results import print_json
from dlm.models.catalog import BUILT_IN_NAME
from dlm.options import known

WIDE = 250  # width in cells if stdout is not a terminal
NARROW = 140  # least width in cells for a full table


def decoders(
    name: Annotated[
        str | None,
        typer.Argument(help="Decoder to describe in full.", show_default="a table of all"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also show published settings, caches and needs.")
    ] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """List the decoders (unmasking policies), or describe one in full."""
    from dlm.decoders import DECODERS

    chosen = DECODERS if name is None else {known("decoder", name, DECODERS): DECODERS[name]}
    rows = [describe_decoder(each, decoder) for each, decoder in chosen.items()]
    if json:
        for row in rows:
            print_json(row)
        return
    if name is None and not verbose:
        print_table(["decoder", "rule", "options", "paper"], list(map(decoder_cells, rows)))
        return
    width = console().width
    for number, row in enumerate(rows):
        rule = row["summary"] if name is None else inspect.getdoc(DECODERS[name]) or ""
        typer.echo("\n" * bool(number) + "\n".join(in_full(row, rule, width)))


def describe_decoder(name: str, decoder: Any) -> dict[str, Any]:
    """The facts about a decoder, with its default options."""
    from dlm.published import PUBLISHED
    from dlm.traits import Traits

    traits = Traits.of(decoder())
    return {
        "name": name,
        "summary": (inspect.getdoc(decoder) or "").partition("\n")[0],
        "options": {field.name: default(field) for field in fields(decoder)},
        "paper": decoder.paper,
        "published": [asdict(each) for each in PUBLISHED if each.decoder == name],
        "caches": list(traits.caches),
        "needs": sorted(traits.needs),
        "mutates_committed": traits.mutates_committed,
    }


def decoder_cells(row: dict[str, Any]) -> list[str]:
    """A decoder as the cells of a table row."""
    return [row["name"], row["summary"], ", ".join(option_lines(row)), row["paper"]]


def option_lines(row: dict[str, Any]) -> list[str]:
    """The options of a decoder with their defaults."""
    return [f"{name}={value}" for name, value in row["options"].items()]


def in_full(row: dict[str, Any], rule: str, width: int) -> Iterator[str]:
    """Describe a decoder in full, in lines of at most `width` cells."""
    yield row["name"]
    yield from (indented(text, 2, width) if text else "" for text in paragraphs(rule))
    published = list(map(setting_line, row["published"]))
    for title, lines in (("options", option_lines(row)), ("published settings", published)):
        if lines:
            yield f"  {title}:"
            yield from (indented(line, 4, width) for line in lines)
    yield indented(f"caches: {', '.join(row['caches'])}", 2, width)
    if row["needs"]:
        yield indented(f"needs: {', '.join(row['needs'])}", 2, width)
    yield f"  changes committed tokens: {'yes' if row['mutates_committed'] else 'no'}"
    yield indented(f"paper: {row['paper']}", 2, width)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring, its arguments and the blank lines, each on one line."""
    for number, block in enumerate(text.split("\n\n")):
        if number:
            yield ""
        # Arguments are indented by four spaces, and their continuation lines by more.
        for entry in re.split(r"\n(?= {4}\w)", block):
            yield re.sub(r"\s*\n\s*", " ", entry)


def indented(text: str, by: int, width: int) -> str:
    """Wrap a text indented by `by` spaces; continuation lines are indented by four more."""
    own = len(text) - len(text.lstrip())
    return fill(
        text.lstrip(),
        max(width, 40),
        initial_indent=" " * (by + own),
        subsequent_indent=" " * (by + own + (4 if own or by > 2 else 0)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def setting_line(setting: dict[str, Any]) -> str:
    """A published setting on one line."""
    rate, preset = setting["tokens_per_forward"], setting["preset"]
    measured = "" if rate is None else f" ({rate:g} tokens per forward)"
    where = setting["task"] if preset is None else f"{setting['task']}, {preset}"
    return f"{where}: {pairs(setting['decoder_options'] | setting['options'])}{measured}"


def pairs(options: Mapping[str, Any]) -> str:
    """Options on one line."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def default(field: "Field[Any]") -> Any:
    """The default of an option, as a JSON value."""
    if field.default_factory is not MISSING:
        value = field.default_factory()
    elif field.default is not MISSING:
        value = field.default
    else:
        return "required"
    plain = value is None or isinstance(value, bool | int | float | str)
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if plain and finite else str(value)


def models(
    text: Annotated[
        str | None,
        typer.Argument(
            help="Show only families and checkpoints whose name contains this, such as sdar.",
            show_default="all",
        ),
    ] = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """List the supported checkpoints, with the facts of their families."""
    from dlm.models.catalog import CHECKPOINTS
    from dlm.models.families import FAMILIES

    listed = [built_in(), *map(asdict, CHECKPOINTS)]
    if text is not None:
        listed = choose_models(text, listed)
    rows = list(map(describe_model, listed))
    if json:
        for row in rows:
            print_json(row)
        return
    head = ["model", "family", "parameters", "predicts", "attention", "licence", "verified", "note"]
    print_table(head, [model_cells(row) for row in rows])
    if text is not None:
        for line in advice_lines(rows):
            typer.echo(line)
    if not rows:
        typer.echo(f"No published checkpoint of this family is known: --family {text} takes one.")
    if text is None:
        typer.echo(f"Families, as --family takes them: {', '.join(FAMILIES)}.")
        typer.echo(
            "Masked language models of transformers load as well: BERT, RoBERTa, ModernBERT ..."
        )


def choose_models(text: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose family or checkpoint name contains a text, ignoring case.

    Raises:
        ValueError: none does, and the text is not a family either.
    """
    from dlm.models.families import FAMILIES

    names = [(row["family"], row["name"]) for row in rows]
    found = [
        row
        for row, pair in zip(rows, names, strict=True)
        if any(text.lower() in name.lower() for name in pair)
    ]
    if not found:
        known("model or family", text, {*FAMILIES, *(name for pair in names for name in pair)})
    return found


def describe_model(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the catalog, extended with the facts of its family."""
    from dlm.models.families import FAMILIES

    family = FAMILIES[row["family"]]
    return row | {
        "model_type": family.model_type,
        "architecture": family.architectures[0],
        "shift": family.shift,
        "block_size": family.named_block(row["name"]) or family.block_size,
        "causal": family.causal,
        "reordered": family.reordered,
        "asks_for_family": family.opt_in,
        "recommended": advice(row["name"]),
    }


def advice(name: str) -> dict[str, Any] | None:
    """The options that a checkpoint's authors recommend, and their source; None if unknown."""
    from dlm.recommendation import lookup, options_of

    found = lookup(name)
    if found is None:
        return None
    return {"options": options_of(found), "source": found.source, "note": found.note}


def advice_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Describe what `--recommended` sets, once for all checkpoints that share the same options."""
    width = console().width
    together: dict[str, list[str]] = {}
    for row in rows:
        if (found := row["recommended"]) is not None:
            own = found["options"].pop("decoder_options", {})
            note = f"; {found['note']}" if found["note"] else ""
            said = f"{pairs(found['options'])}{f' ({pairs(own)})' if own else ''}"
            text = f"{said}. From {found['source']}{note}."
            together.setdefault(text, []).append(row["name"])
    for text, names in together.items():
        yield f"\nrecommended for {', '.join(names)}:"
        yield indented(text, 2, width)


def model_cells(row: dict[str, Any]) -> list[str]:
    """A checkpoint as the cells of a table row."""
    attention = "both ways" if row["block_size"] is None else f"blocks of {row['block_size']}"
    if row["reordered"]:
        attention = "causal, masks last"
    elif row["causal"]:
        attention += ", causal before"
    return [
        row["name"],
        row["family"],
        size(row["parameters"]),
        "the next token" if row["shift"] else "the token itself",
        attention,
        row["licence"],
        row["verified"],
        row["note"],
    ]


def built_in() -> dict[str, Any]:
    """The built-in model, with the fields of the catalog."""
    weights = files("dlm") / "assets" / "tiny" / "model.safetensors"
    return {
        "name": BUILT_IN_NAME,
        "family": "llada",
        "parameters": count_parameters(weights) if weights.is_file() else None,
        "licence": "Apache-2.0",
        "verified": "trained by this project",
        "note": "" if weights.is_file() else "no weights here",
    }


def count_parameters(weights: Traversable) -> int:
    """Count the parameters of a safetensors file from its header."""
    with weights.open("rb") as stream:
        header = json_format.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(map(int, tensor["shape"])) for tensor in tensors)


def size(parameters: int | None) -> str:
    """A number of parameters as text."""
    if parameters is None:
        return "unknown"
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.1f} {name}"
    return str(parameters)


def console() -> Console:
    """A console on stdout; wide if stdout is not a terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=WIDE)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a column for each of `head`, or with two on a narrow terminal."""
    screen = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    narrow = screen.width < NARROW
    for column in head[:2] if narrow else head:
        table.add_column(column, no_wrap=column == head[0])
    for row in rows:
        table.add_row(*(stacked(head, row) if narrow else map(Text, row)))
    screen.print(table)


def stacked(head: Sequence[str], row: Sequence[str]) -> tuple[Text, Text]:
    """A row in two columns: further cells go below the second, each after its column name."""
    rest = (f"{name}: {cell}" for name, cell in zip(head[2:], row[2:], strict=True) if cell)
    return Text(row[0]), Text.assemble(row[1], "\n", ("   ".join(rest), "dim"))
