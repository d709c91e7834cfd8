"""`dlm frequencies`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dlm.cli.bars import bar
from dlm.cli.errors import INTERRUPTED
from dlm.cli.options import COUNT, JSON, data, output
from dlm.cli.results import note, print_json, try_file
from dlm.cli.train import load_tokenizer, stop_after_step
from dlm.models.catalog import BUILT_IN_NAME

if TYPE_CHECKING:
    from dlm.frequencies import Corpus, TokenCounts

MOST = 10  # tokens listed


def frequencies(
    corpus: Annotated[
        list[Path],
        typer.Argument(
            metavar="CORPUS",
            help="Files of documents: one per line, or .jsonl with one text in each object.",
        ),
    ],
    out: Annotated[
        Path, output(metavar="FILE", help="JSON file to write; an existing one is resumed.")
    ],
    model: Annotated[
        str | None,
        data(
            help="Folder or Hugging Face id of the model whose tokenizer to use.",
            show_default="the built-in tiny model",
        ),
    ] = None,
    field: Annotated[str, data(metavar="KEY", help="Key of the text in .jsonl objects.")] = "text",
    limit: Annotated[
        int | None, data(help="Maximum number of documents to count.", show_default="all", **COUNT)
    ] = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Count the tokens of a corpus, for the decoder pc_sampler."""
    from dlm.frequencies import Corpus

    try_file("--out", out)
    documents = Corpus(corpus, field)
    facts = documents.identify()
    tokenizer = read_tokenizer(model)
    options = {
        "out": out,
        "corpus": facts,
        "limit": limit,
        "name": BUILT_IN_NAME if model is None else model,
    }
    total = count_until_stopped(tokenizer, documents, options)
    show(summary(total, tokenizer, out), machine=json)


def read_tokenizer(name: str | None) -> Any:
    """Load the tokenizer of a model, without its weights.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the model has no tokenizer, or a corrupt one.
    """
    if name is None:
        return load_tokenizer(None)
    from dlm.models import tokenizers
    from dlm.models.facts import read_config
    from dlm.models.loading import locate

    source = locate(name, "--model")
    tokenizer = tokenizers.read_tokenizer(source)
    if tokenizer is None:
        if not Path(source).is_dir():
            read_config(source)  # raises the error if no such model exists at all
        raise ValueError(f"--model must have a tokenizer, got {name!r}, where none was found")
    return tokenizer


def count_until_stopped(
    tokenizer: Any, documents: "Corpus", options: dict[str, Any]
) -> "TokenCounts":
    """Count until done, or until Ctrl-C, which ends the command."""
    from dlm.frequencies import count_tokens

    try:
        with stop_after_step() as check, bar(TimeRemainingColumn()) as update:

            def report(total: "TokenCounts") -> None:
                counted = f"{total.documents:,} documents  {total.num_token:,} tokens"
                update(counted, documents.bytes_read, documents.size)
                check()

            return count_tokens(tokenizer, documents, report=report, **options)
    except KeyboardInterrupt:
        saved = options["out"].exists()
        note(f"interrupted: {'the same command goes on' if saved else 'nothing was saved'}")
        raise typer.Exit(INTERRUPTED) from None


def summary(total: "TokenCounts", tokenizer: Any, out: Path) -> dict[str, Any]:
    """The result as the object that `--json` prints."""
    # Equal counts are sorted by id: the order of a Counter depends on which texts came first.
    most = sorted(total.counts.items(), key=lambda item: (-item[1], item[0]))[:MOST]
    return {
        "out": str(out),
        "documents": total.documents,
        "tokens": total.num_token,
        "distinct_tokens": len(total.counts),
        "vocab_size": len(tokenizer),
        "most_frequent": [
            {
                "id": token,
                "text": tokenizer.decode([token]),
                "count": count,
                "share": count / total.num_token,
            }
            for token, count in most
        ],
    }


def show(result: dict[str, Any], *, machine: bool) -> None:
    """Print the result as JSON, or as a line and a table."""
    if machine:
        print_json(result)
        return
    typer.echo(
        f"{result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['distinct_tokens']:,} distinct of {result['vocab_size']:,}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("token", no_wrap=True)
    for column in ("id", "count", "share"):
        table.add_column(column, justify="right")
    for row in result["most_frequent"]:
        cells = (repr(row["text"]), str(row["id"]), f"{row['count']:,}", f"{row['share']:.2%}")
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)
    out = result["out"]
    note(f"wrote {out}: use it with --decoder pc_sampler --option frequencies={out}")
