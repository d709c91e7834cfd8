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
from dlm.cli.meter import Display
from dlm.cli.options import COUNT, JSON, REAL, WHOLE, data, network, optimiser, run
from dlm.cli.results import note
from dlm.data import read_held_out

if TYPE_CHECKING:
    from dlm.models.spec import ModelSpec
    from dlm.training.loop import Progress


def train(  # noqa: PLR0913 (the parameters are the command line)
    out: Annotated[Path, run(metavar="DIR", help="Folder for checkpoints and the trained model.")],
    resume: Annotated[bool, run("--resume", help="Resume from the checkpoint in --out.")] = False,
    log_every: Annotated[
        int, run(help="Steps between progress lines (with --json or without a terminal).", **COUNT)
    ] = 50,
    json: Annotated[bool, JSON] = False,
    task: Annotated[
        list[str] | None,
        data(
            metavar="NAME=SHARE",
            help="Share of the batches: sudoku, countdown, word_problems, functions, arithmetic, "
            "or file for --data; repeatable.",
            show_default="equal shares, or file alone with --data",
        ),
    ] = None,
    data_file: Annotated[
        Path | None,
        data("--data", metavar="FILE", help='Your own JSONL with "prompt" and "response".'),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        data(
            metavar="FILE",
            help="Published sudoku or countdown file to exclude from training; repeatable.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        data(metavar="DIR", help="Folder with a tokenizer.", show_default="the built-in one"),
    ] = None,
    steps: Annotated[int, optimiser(help="Optimiser steps.", **WHOLE)] = 1000,
    tokens_per_batch: Annotated[
        int, optimiser(help="Maximum tokens in a batch: rows times length.", **WHOLE)
    ] = 8192,
    max_extra: Annotated[
        int,
        optimiser(help="Maximum number of end-of-text tokens after the longest response.", **WHOLE),
    ] = 16,
    optimizer: Annotated[
        str, optimiser(help="adamw, or muon (for the matrices in layers, with adamw for the rest).")
    ] = "adamw",
    learning_rate: Annotated[float, optimiser(help="Peak learning rate.", **REAL)] = 3e-3,
    warmup: Annotated[
        int, optimiser(help="Steps in which the learning rate rises.", **WHOLE)
    ] = 100,
    weight_decay: Annotated[float, optimiser(help="Weight decay of matrices.", **REAL)] = 0.01,
    clip: Annotated[
        float, optimiser(help="Gradient norm above which the gradient is clipped.", **REAL)
    ] = 1.0,
    seed: Annotated[int, optimiser(help="Seed of weights, data and masks.", **WHOLE)] = 0,
    device: Annotated[
        str | None, optimiser(help="Device, such as cuda.", show_default="cpu")
    ] = None,
    width: Annotated[
        int | None, network(help="Width of the hidden states.", show_default="128", **WHOLE)
    ] = None,
    layers: Annotated[
        int | None, network(help="Number of transformer layers.", show_default="4", **WHOLE)
    ] = None,
    heads: Annotated[
        int | None,
        network(help="Attention heads; must divide the width.", show_default="4", **WHOLE),
    ] = None,
    mlp_width: Annotated[
        int | None, network(help="Hidden units in an MLP.", show_default="352", **WHOLE)
    ] = None,
    init: Annotated[
        Path | None,
        network(metavar="DIR", help="Start from the weights and tokenizer of this model."),
    ] = None,
) -> None:
    """Train a LLaDA-shaped model from scratch, or continue training one."""
    tasks = choose_tasks(parse_shares(task or []), data_file)
    held = read_held_out(held_out or [])
    examples = read_user_examples(data_file, held)

    from dlm.models.loading import silence
    from dlm.models.placement import check_device
    from dlm.training.loop import Recipe

    shape = {"width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width}
    with silence():
        start, words = starting_point(
            {name: value for name, value in shape.items() if value is not None},
            init,
            tokenizer,
            seed,
        )
    options: dict[str, Any] = {
        "recipe": Recipe(
            tasks=tasks,
            steps=steps,
            tokens_per_batch=tokens_per_batch,
            max_extra=max_extra,
            optimizer=optimizer,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            seed=seed,
        ),
        "network": start.to(check_device(device)),
        "tokenizer": words,
        "out": out,
        "held_out": held,
        "examples": examples,
        "resume": resume,
    }
    with Display(steps, every=log_every, machine=json) as display, silence():
        finished = run_until_stopped(options, display)
    if not finished:
        raise typer.Exit(INTERRUPTED)
    if not json:
        note(f"wrote {out}: try it with dlm generate --chat --model {out}")


def run_until_stopped(options: dict[str, Any], display: Display) -> bool:
    """Train until done, or until Ctrl-C; returns whether training was done."""
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
def stop_after_step(
    told: str | None = "stopping after this step",
) -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C until the end of a step, when a checkpoint is consistent.

    Args:
        told: printed at once when Ctrl-C is pressed, if not None.

    Yields:
        A function to call after each step. A second Ctrl-C interrupts at once.
    """
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        if told is not None:
            note(told)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def starting_point(
    shape: dict[str, int], init: Path | None, tokenizer: Path | None, seed: int
) -> tuple[Any, Any]:
    """The network to train and its tokenizer.

    Raises:
        ValueError: `init` is given along with a shape or a tokenizer, or its model does not suit
            the training objective.
    """
    from dlm.models.int8 import refuse_quantized
    from dlm.models.loading import load
    from dlm.prompts import tokenizer_of
    from dlm.training.run import Shape, new_network

    if init is None:
        words = load_tokenizer(tokenizer)
        return new_network(Shape(**shape), words, seed), words
    if shape or tokenizer is not None:
        given = [*shape, *(["tokenizer"] if tokenizer is not None else [])]
        raise ValueError(f"--init brings its own shape and tokenizer: leave out {given}")
    model = load(init, dtype="float32")
    refuse_quantized(model.network, "training")
    check_start(model.spec)
    return model.network, tokenizer_of(model, "training")


def check_start(spec: "ModelSpec") -> None:
    """Refuse a model whose input or output format differs from that of training.

    Raises:
        ValueError: it predicts the next token, its attention is in blocks, or its rows end in
            tokens of their own.
    """
    # Training feeds whole rows as they are, and reads the token at a mask from the output there.
    odd = {"shift": spec.shift, "block_size": spec.block_size, "suffix": spec.suffix}
    found = ", ".join(f"{name}={value}" for name, value in odd.items() if value)
    if found:
        raise ValueError(
            "--init must be a model that predicts the token itself and sees both ways, "
            f"got one of {spec.family} with {found}"
        )


def load_tokenizer(folder: Path | None) -> Any:
    """Load the tokenizer of a folder, or the built-in one."""
    from dlm.models.loading import BUILT_IN
    from dlm.models.tokenizers import read_tokenizer

    if folder is None:
        with as_file(files("dlm") / "assets" / BUILT_IN) as assets:
            return read_tokenizer(str(assets))
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in --tokenizer {str(folder)!r}")
    return read_tokenizer(str(folder))
