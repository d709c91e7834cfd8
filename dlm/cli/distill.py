"""`dlm distill`: train models and schedules that need fewer forward passes."""

import json as json_format
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlm.cli.bars import bar, on_terminal
from dlm.cli.distill_certainty import certainty
from dlm.cli.errors import INTERRUPTED, Commands
from dlm.cli.inputs import Messages, as_chat, read_prompts
from dlm.cli.loading import load_model, model_name
from dlm.cli.options import (
    BLOCKS,
    COUNT,
    JSON,
    REAL,
    WHOLE,
    Adapter,
    BlockSize,
    Chat,
    Device,
    Dtype,
    FamilyName,
    MaskId,
    ModelName,
    PromptFile,
    Prompts,
    decoding,
    optimiser,
    output,
    source,
    unless_none,
)
from dlm.cli.results import note, print_json
from dlm.cli.train import stop_after_step

if TYPE_CHECKING:
    from dlm.decoders.artefact import ScheduleArtefact
    from dlm.distill.schedule import Distiller, Recipe
    from dlm.models.model import Model

CACHE = "trajectories"  # folder inside --out

app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Learn to decode in fewer forward passes."
)


def budgets(text: str) -> list[int]:
    """Parse distinct ints separated by commas.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--budget must be ints with commas between, got {text!r}") from None
    if len(set(found)) != len(found):
        raise ValueError(f"--budget must have each budget once, got {text!r}")
    return found


def schedule(  # noqa: PLR0913 (the parameters are the command line)
    budget: Annotated[
        str,
        decoding(
            metavar="N[,N...]",
            help="Forward passes per generation; learns one schedule for each N.",
        ),
    ],
    out: Annotated[
        Path,
        output(
            metavar="DIR",
            help="Folder for the schedules; the same command resumes an interrupted run.",
        ),
    ],
    prompts: Prompts = None,
    file: PromptFile = None,
    chat: Chat = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "auto",
    family: FamilyName = None,
    block_size: BlockSize = None,
    mask_id: MaskId = None,
    adapter: Adapter = None,
    batch_size: Annotated[int, source(help="Prompts decoded at once.", **COUNT)] = 16,
    base_policy: Annotated[
        str,
        decoding(help="Ranking of positions: low_confidence, entropy, margin or left_to_right."),
    ] = "low_confidence",
    gen_length: Annotated[int, decoding(help="Tokens to decode.", **WHOLE)] = 256,
    block_length: Annotated[
        int,
        decoding(help='Tokens in a block, or "none" for a single block.', **BLOCKS),
    ] = 32,
    refreshes: Annotated[
        int,
        optimiser(
            help="Times to rebuild the error table at the student's states, 0 to 3.", **WHOLE
        ),
    ] = 2,
    scale: Annotated[bool, optimiser("--scale/--no-scale", help="Learn logit scales.")] = True,
    scale_confidence: Annotated[
        bool,
        optimiser(
            "--scale-confidence/--no-scale-confidence", help="Rank positions by scaled logits."
        ),
    ] = True,
    relax: Annotated[
        float,
        optimiser(help="Share of a block in which states may differ from the teacher's.", **REAL),
    ] = 0.0,
    seed: Annotated[
        int | None,
        optimiser(help="Seed of the states that --relax tries.", show_default="0", **WHOLE),
    ] = None,
    plot: Annotated[
        bool, output("--plot", help="Also draw each schedule as an SVG; needs the extra plot.")
    ] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Learn how many tokens each forward pass should reveal, and how sharply."""
    wanted = budgets(budget)
    rows = read_prompts(prompts or [], file)
    from dlm.distill.schedule import Recipe

    recipe = Recipe(
        base_policy=base_policy,
        gen_length=gen_length,
        block_length=unless_none(block_length),
        refreshes=refreshes,
        scale=scale,
        scale_confidence=scale_confidence,
        relax=relax,
        seed=seed,
        batch_size=batch_size,
    )
    if plot:
        from dlm.plotting import pyplot

        pyplot("--plot")
    loaded = load_model(
        model,
        device,
        dtype,
        adapter=adapter,
        family=family,
        block_size=block_size,
        mask_id=mask_id,
    )
    wrap = model is None if chat is None else chat
    name = model_name(model, adapter)
    distiller = prepare(loaded, rows, recipe, out, name=name, chat=wrap)
    for each in wanted:
        distiller.forwards(each)
    from dlm.exclusive import alone

    with alone(distiller.folder):
        for each in wanted:
            made = learn_until_stopped(distiller, each)
            path = out / f"schedule-{each}.json"
            made.save(path)
            if plot:
                from dlm.distill.schedule_plot import draw

                draw(made, path.with_suffix(".svg"))
            show(made, path, machine=json)


def prepare(
    model: "Model",
    rows: Sequence[str | Messages],
    recipe: "Recipe",
    out: Path,
    *,
    name: str,
    chat: bool,
) -> "Distiller":
    """Build the distiller from the model, its prompts and the folder for trajectories."""
    from dlm.distill.schedule import Distiller, Origin
    from dlm.prompts import encode_prompts

    texts = [as_chat(row) for row in rows] if chat else list(rows)
    origin = Origin.of(model, name)
    return Distiller.of(model, encode_prompts(model, texts), recipe, out / CACHE, origin=origin)


def learn_until_stopped(distiller: "Distiller", budget: int) -> "ScheduleArtefact":
    """Learn until done, or until Ctrl-C, which ends the command."""
    try:
        with stop_after_step() as check, bar() as update:

            def report(what: str, done: int, total: int) -> None:
                update(f"{what}  {done}/{total}", done, total)
                if done == total and not on_terminal():
                    typer.echo(f"{what}: {done}/{total}", err=True)
                check()

            return replace(distiller, report=report).learn_alone(budget)
    except KeyboardInterrupt:
        note("interrupted: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None


def show(made: "ScheduleArtefact", path: Path, *, machine: bool) -> None:
    """Print a schedule as JSON or as a few lines of text."""
    training = json_format.loads(made.training)
    error = training["error"]
    if machine:
        print_json(
            {
                "out": str(path),
                "budget": made.steps,
                "reveal": made.reveal,
                "logit_scale": made.logit_scale,
                "error": error,
                "rejected": training["rejected"],
                "checksum": made.checksum,
            }
        )
        return
    typer.echo(f"{made.steps} forwards: reveal {' '.join(map(str, made.reveal))}")
    typer.echo(
        f"  tokens unlike the teacher's: {error['realised']:.2%}, "
        f"uniform {error['uniform']:.2%}, predicted {error['predicted']:.2%}"
    )
    if training["rejected"]:
        note(f"scales out of range at forwards {training['rejected']}: left at 1")
    note(f"wrote {path}: use it with --decoder schedule --option path={path}")


app.command("schedule")(schedule)
app.command("certainty")(certainty)
