"""`dlm decoders` and `dlm models`."""

import inspect
import json as json_format
import math
from dataclasses import MISSING, Field, asdict, fields
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.cli.options import JSON
from dlm.cli.results import print_json

WIDE = 200  # columns where no terminal sets them


def decoders(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With what each needs and may do.")
    ] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """List the unmasking policies."""
    from dlm.decoders import DECODERS

    rows = [describe_decoder(name, decoder) for name, decoder in DECODERS.items()]
    if json:
        for row in rows:
            print_json(row)
        return
    table = new_table("decoder", "rule", "options", "paper")
    if verbose:
        table.add_column("needs")
        table.add_column("changes committed tokens")
    for row in rows:
        options = "\n".join(f"{name}={value}" for name, value in row["options"].items())
        cells = [row["name"], row["summary"], options, row["paper"]]
        if verbose:
            cells += [", ".join(row["needs"]), "yes" if row["mutates_committed"] else "no"]
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)


def describe_decoder(name: str, decoder: Any) -> dict[str, Any]:
    """What there is to say about a policy."""
    return {
        "name": name,
        "summary": (inspect.getdoc(decoder) or "").partition("\n")[0],
        "options": {field.name: default(field) for field in fields(decoder)},
        "paper": decoder.paper,
        "needs": sorted(decoder.needs),
        "mutates_committed": decoder.mutates_committed,
    }


def default(field: "Field[Any]") -> Any:
    """The default of an option as JSON can hold it."""
    if field.default_factory is not MISSING:
        value = field.default_factory()
    elif field.default is not MISSING:
        value = field.default
    else:
        return "required"
    plain = value is None or isinstance(value, bool | int | float | str)
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if plain and finite else str(value)


def models(json: Annotated[bool, JSON] = False) -> None:
    """List the checkpoints that load."""
    from dlm.models.catalog import CHECKPOINTS

    rows = [built_in(), *map(asdict, CHECKPOINTS)]
    if json:
        for row in rows:
            print_json(row)
        return
    table = new_table("model", "family", "parameters", "licence", "verified")
    table.columns[2].justify = "right"
    for row in rows:
        cells = [*row.values()]
        cells[2] = size(row["parameters"])
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)


def built_in() -> dict[str, Any]:
    """The model that comes with the package, in the fields of the catalog."""
    return {
        "name": "built-in",
        "family": "llada",
        "parameters": built_in_parameters(),
        "licence": "Apache-2.0",
        "verified": "trained by this project: loads without a name",
    }


def built_in_parameters() -> int | None:
    """Parameters of the built-in model out of its file's header; None without the file."""
    weights = files("dlm") / "assets" / "tiny" / "model.safetensors"
    if not weights.is_file():
        return None
    with weights.open("rb") as stream:
        header = json_format.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def size(parameters: int | None) -> str:
    """A number of parameters for people."""
    if parameters is None:
        return "no weights here"
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.1f} {name}"
    return str(parameters)


def new_table(*columns: str) -> Table:
    """A table with a rule below its head and nothing more."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    return table


def print_table(table: Table) -> None:
    """Print to the width of the terminal, or wide where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print(table)
