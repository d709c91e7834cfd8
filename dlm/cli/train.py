"""`dlm train`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli.corpus import choose_tasks, read_user_examples
from dlm.cli.errors import INTERRUPTED
from dlm.cli.inputs import parse_shares
from dlm.cli.loading import silence
from dlm.cli.meter import Display
from dlm.cli.options import JSON, data, network, optimiser, output
from dlm.cli.results import note
from dlm.data import read_held_out

if TYPE_CHECKING:
    from dlm.training.loop import Progress


def train(  # noqa: PLR0913 (the parameters are the command line)
    out: Annotated[Path, output(help="Folder for checkpoints and the trained model.")],
    resume: Annotated[bool, output("--resume", help="Go on from the checkpoint in --out.")] = False,
    log_every: Annotated[
        int, output(min=1, help="Steps between lines, with --json or without a terminal.")
    ] = 50,
    json: Annotated[bool, JSON] = False,
    task: Annotated[
        list[str] | None,
        data(
            metavar="NAME=SHARE",
            help="Share of the batches: sudoku, countdown, word_problems, functions, or file "
            "for --data; repeatable.",
            show_default="all four alike, or file alone with --data",
        ),
    ] = None,
    data_file: Annotated[
        Path | None, data("--data", help='Your own JSONL with "prompt" and "response".')
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        data(help="Published sudoku or countdown file never to train on; repeatable."),
    ] = None,
    tokenizer: Annotated[
        Path | None, data(help="Folder of a tokenizer.", show_default="the built-in one")
    ] = None,
    steps: Annotated[int, optimiser(help="Updates.")] = 1000,
    tokens_per_batch: Annotated[int, optimiser(help="Rows times length, about.")] = 8192,
    max_extra: Annotated[
        int, optimiser(help="Most end-of-text tokens beyond the longest response.")
    ] = 16,
    learning_rate: Annotated[float, optimiser(help="Its peak.")] = 3e-3,
    warmup: Annotated[int, optimiser(help="Steps of rising learning rate.")] = 100,
    weight_decay: Annotated[float, optimiser(help="Of matrices.")] = 0.01,
    clip: Annotated[float, optimiser(help="Largest norm of the gradient.")] = 1.0,
    seed: Annotated[int, optimiser(help="Decides weights, data and masks.")] = 0,
    device: Annotated[str | None, optimiser(help="Such as cuda.", show_default="cpu")] = None,
    width: Annotated[int, network(help="Of the hidden states.")] = 128,
    layers: Annotated[int, network(help="Transformer blocks.")] = 4,
    heads: Annotated[int, network(help="Attention heads; they divide the width.")] = 4,
    mlp_width: Annotated[int, network(help="Hidden units of an MLP.")] = 352,
) -> None:
    """Train a LLaDA-shaped model from nothing."""
    tasks = choose_tasks(parse_shares(task or []), data_file)
    held = read_held_out(held_out or [])
    examples = read_user_examples(data_file, held)

    from dlm.models.loading import check_device
    from dlm.training.loop import Recipe
    from dlm.training.run import Shape

    options: dict[str, Any] = {
        "recipe": Recipe(
            tasks=tasks,
            steps=steps,
            tokens_per_batch=tokens_per_batch,
            max_extra=max_extra,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            seed=seed,
        ),
        "shape": Shape(width=width, layers=layers, heads=heads, mlp_width=mlp_width),
        "tokenizer": load_tokenizer(tokenizer),
        "out": out,
        "device": check_device(device),
        "held_out": held,
        "examples": examples,
        "resume": resume,
    }
    with Display(steps, every=log_every, machine=json) as display, silence():
        finished = run(options, display)
    if not finished:
        raise typer.Exit(INTERRUPTED)
    if not json:
        note(f"wrote {out}: try it with dlm generate --chat --model {out}")


def run(options: dict[str, Any], display: Display) -> bool:
    """Train to the end, or to the user's Ctrl-C; returns whether it was the end."""
    from dlm.training.loop import STATE
    from dlm.training.run import train as train_model

    try:
        with stop_after_step() as check:

            def report(progress: "Progress") -> None:
                display.show(progress)
                check()

            train_model(**options, report=report)
    except KeyboardInterrupt:
        saved = (options["out"] / STATE).exists()
        resume = "to go on, run the same command with --resume" if saved else "nothing was saved"
        note(f"interrupted: {resume}")
        return False
    return True


@contextmanager
def stop_after_step() -> Iterator[Callable[[], None]]:
    """Turn Ctrl-C into an interruption between two steps, where a checkpoint is whole.

    Yields:
        What to call after a step. A second Ctrl-C does not wait for it.
    """
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        note("stopping after this step")

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def load_tokenizer(folder: Path | None) -> Any:
    """The tokenizer of a folder, or the built-in model's."""
    from dlm.models.loading import BUILT_IN, read_tokenizer

    if folder is None:
        with as_file(files("dlm") / "assets" / BUILT_IN) as assets:
            return read_tokenizer(str(assets))
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in --tokenizer {str(folder)!r}")
    return read_tokenizer(str(folder))
