"""`dlm distill certainty`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dlm.cli.corpus import FILE, choose_tasks, read_user_examples
from dlm.cli.errors import INTERRUPTED
from dlm.cli.inputs import parse_shares
from dlm.cli.loading import load_model
from dlm.cli.meter import Display
from dlm.cli.options import (
    BLOCKS,
    COUNT,
    JSON,
    REAL,
    WHOLE,
    BlockSize,
    Device,
    Dtype,
    FamilyName,
    MaskId,
    ModelName,
    data,
    network,
    optimiser,
    run,
    unless_none,
)
from dlm.cli.results import note
from dlm.cli.train import stop_after_step
from dlm.data import Example, generate_examples, read_held_out

if TYPE_CHECKING:
    from dlm.distill.certainty_recipe import Recipe
    from dlm.distill.certainty_targets import Target, Teacher
    from dlm.models.model import Model
    from dlm.training.loop import Progress

MERGED = "merged"  # folder for the merged model
DRAWS = 20  # draws of a task per wanted prompt, at most: some tasks have few different prompts


def certainty(  # noqa: PLR0913 (the parameters are the command line)
    out: Annotated[
        Path, run(metavar="DIR", help="Folder for targets, checkpoints and the adapter.")
    ],
    resume: Annotated[bool, run("--resume", help="Resume the run in --out.")] = False,
    merge: Annotated[
        bool, run("--merge", help="Also write the model with the adapter merged in to DIR/merged.")
    ] = False,
    log_every: Annotated[
        int, run(help="Steps between progress lines (with --json or without a terminal).", **COUNT)
    ] = 50,
    json: Annotated[bool, JSON] = False,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "auto",
    family: FamilyName = None,
    block_size: BlockSize = None,
    mask_id: MaskId = None,
    task: Annotated[
        list[str] | None,
        data(
            metavar="NAME=SHARE",
            help="Share of the prompts: sudoku, countdown, word_problems, functions, arithmetic, "
            "or file for --data; repeatable.",
            show_default="equal shares, or file alone with --data",
        ),
    ] = None,
    data_file: Annotated[
        Path | None,
        data(
            "--data",
            metavar="FILE",
            help='JSONL with "prompt" and "response"; the response is ignored.',
        ),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        data(
            metavar="FILE",
            help="Published sudoku or countdown file to exclude from training; repeatable.",
        ),
    ] = None,
    prompts: Annotated[int, data(help="Maximum number of distinct prompts.", **COUNT)] = 2000,
    chat: Annotated[
        bool, data("--chat/--raw", help="Apply the chat template to prompts, or not.")
    ] = True,
    gen_length: Annotated[int, data(help="Tokens in a target.", **WHOLE)] = 256,
    teacher_block_length: Annotated[
        int, data(help='Tokens in a block when targets are decoded, or "none".', **BLOCKS)
    ] = 32,
    decode_batch: Annotated[
        int, data(help="Prompts decoded at once; does not change the targets.", **COUNT)
    ] = 16,
    only_right: Annotated[
        bool,
        data(
            "--only-right",
            help="Drop targets that do not solve their task; targets of --data are not checked.",
        ),
    ] = False,
    block_length: Annotated[
        int,
        data(help='Tokens in the block that is masked, or "none" for the whole target.', **BLOCKS),
    ] = 32,
    ratio: Annotated[
        float, data(help="Share of the block that is masked in the first view.", **REAL)
    ] = 0.5,
    temperature: Annotated[float, optimiser(help="Temperature of the entropy term.", **REAL)] = 0.5,
    weight: Annotated[float, optimiser(help="Weight of the entropy term.", **REAL)] = 2.0,
    steps: Annotated[int, optimiser(help="Optimiser steps.", **WHOLE)] = 1000,
    batch_size: Annotated[int, optimiser(help="Rows in a forward pass.", **WHOLE)] = 1,
    accumulate: Annotated[int, optimiser(help="Forward passes per optimiser step.", **WHOLE)] = 8,
    learning_rate: Annotated[float, optimiser(help="Peak learning rate.", **REAL)] = 2e-5,
    schedule: Annotated[
        str, optimiser(help="Learning rate schedule: constant or cosine.")
    ] = "constant",
    warmup: Annotated[
        float, optimiser(help="Share of the steps in which the learning rate rises.", **REAL)
    ] = 0.0,
    weight_decay: Annotated[float, optimiser(help="Weight decay of the adapter.", **REAL)] = 0.01,
    clip: Annotated[
        float, optimiser(help="Gradient norm above which the gradient is clipped.", **REAL)
    ] = 1.0,
    precision: Annotated[str, optimiser(help="float32, or bfloat16 (autocast).")] = "float32",
    checkpointing: Annotated[
        bool,
        optimiser(
            "--checkpointing", help="Recompute activations in the backward pass to save memory."
        ),
    ] = False,
    seed: Annotated[
        int, optimiser(help="Seed of prompts, masks and initial weights.", **WHOLE)
    ] = 0,
    rank: Annotated[int, network(help="Rank of the adapter.", **WHOLE)] = 128,
    alpha: Annotated[float, network(help="The adapter is scaled by alpha / rank.", **REAL)] = 128.0,
    layer: Annotated[
        list[str] | None,
        network(
            metavar="NAME",
            help="Last part of the name of modules to adapt; repeatable.",
            show_default="attention and MLP projections",
        ),
    ] = None,
) -> None:
    """Train an adapter on the model's own outputs, so that it is certain earlier (dParallel)."""
    tasks = choose_tasks(parse_shares(task or []), data_file)
    if only_right and not set(tasks) - {FILE}:
        raise ValueError("--only-right is for tasks that tell what is right: give a --task, too")
    held = read_held_out(held_out or [])
    examples = choose_prompts(tasks, read_user_examples(data_file, held), held, prompts, seed)

    from dlm.distill.certainty_recipe import Recipe
    from dlm.distill.certainty_targets import Teacher
    from dlm.models.loading import silence

    teacher = Teacher(gen_length, unless_none(teacher_block_length), decode_batch)
    recipe = Recipe(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        block_length=unless_none(block_length),
        ratio=ratio,
        temperature=temperature,
        weight=weight,
        rank=rank,
        alpha=alpha,
        layers=tuple(layer) if layer else None,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        precision=precision,
        checkpointing=checkpointing,
        seed=seed,
    )
    base = load_model(model, device, dtype, family=family, block_size=block_size, mask_id=mask_id)
    work = Work(base, examples, teacher, recipe, out, model, chat=chat, only_right=only_right)
    with silence():
        wrapped = work.run(resume, Display(steps, every=log_every, machine=json), merge=merge)
    if wrapped is None:
        raise typer.Exit(INTERRUPTED)
    if not json and first_process(base):
        note(f"wrote {out}: load it with dlm.load(..., adapter={str(out)!r})")


def first_process(base: "Model") -> bool:
    """Whether this process is the one that writes, out of possibly several."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    # The first call sets up how all processes communicate.
    return bool(PartialState(cpu=base.device.type == "cpu").is_main_process)


def choose_prompts(
    tasks: Mapping[str, float],
    own: Sequence[Example],
    held_out: frozenset[str],
    count: int,
    seed: int,
) -> list[Example]:
    """Choose distinct prompts of every task by its share, `count` in all; fewer if a task runs out.

    The user's own examples get the task name "file". Their own task name is that of their file,
    which may be the name of a built-in task, whose rule for correct answers does not apply to them.

    Args:
        tasks: share of each task; "file" stands for the user's own examples.
        own: the user's own examples.
        held_out: prompts that must not be chosen.
        count: most prompts in all.
        seed: seed of generated prompts.
    """
    whole = sum(tasks.values())
    held = {prompt.strip() for prompt in held_out}  # stripped, as by chat templates
    seen, due = 0.0, 0  # shares so far, and the prompts due for them
    found: dict[str, Example] = {}
    for name, share in tasks.items():
        seen += share
        before, due = due, round(count * seen / whole)  # each share alone would not add up
        wanted = len(found) + due - before
        drawn = (
            [replace(example, task=FILE) for example in own]
            if name == FILE
            else generate_examples(name, seed, count=DRAWS * count, held_out=held_out)
        )
        for example in drawn:
            if len(found) >= wanted:
                break
            if example.prompt.strip() not in held:
                found.setdefault(example.prompt, example)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Work:
    """What the command does once its options are parsed."""

    base: "Model"
    examples: Sequence[Example]
    teacher: "Teacher"
    recipe: "Recipe"
    out: Path
    name: str | None
    chat: bool
    only_right: bool

    def run(self, resume: bool, display: Display, *, merge: bool = False) -> Any:
        """Decode targets, train and merge; returns the trained network, or None after Ctrl-C.

        Raises:
            ValueError: a run exists although `resume` is not set, or the other way round; another
                run is active; or the network cannot be trained this way. Nothing has been written
                then.
        """
        from dlm.distill.certainty_run import check_network
        from dlm.distill.certainty_targets import encode

        main = first_process(self.base)  # the others would see what this one has begun to write
        if main:
            self.check_folder(resume)
        check_network(self.base.network, self.recipe)
        encode(self.base, self.examples, self.teacher, chat=self.chat)  # the lock makes the folder
        with self.alone(resume) if main else nullcontext():
            wrapped = self.train(display)
            if wrapped is not None and merge and main:
                self.write_merged(wrapped)
        return wrapped

    @contextmanager
    def alone(self, resume: bool) -> Iterator[None]:
        """Lock the folder against other runs.

        Raises:
            ValueError: another run is active, or has changed the folder since it was checked.
        """
        from dlm.exclusive import alone

        with alone(self.out):
            self.check_folder(resume)
            yield

    def check_folder(self, resume: bool) -> None:
        """Refuse a folder that has a run unless it is resumed, and one without a run if it is."""
        from dlm.distill.certainty_run import STATE, refuse_model
        from dlm.distill.certainty_targets import FILE as TARGETS

        refuse_model(self.out)
        if any((self.out / name).exists() for name in (TARGETS, STATE)) != resume:
            rule = "no run to resume" if resume else "a run already: resume it or choose another"
            raise ValueError(f"--out {str(self.out)!r} holds {rule}")

    def train(self, display: Display) -> Any:
        """Decode targets and train, resuming where an earlier run stopped."""
        from dlm.distill.certainty_run import STATE, train

        try:
            targets = self.targets()
            with display, stop_after_step() as check:

                def report(progress: "Progress") -> None:
                    display.show(progress)
                    check()

                return train(
                    self.recipe,
                    self.base,
                    targets,
                    self.out,
                    base=self.name,
                    resume=(self.out / STATE).exists(),
                    report=report,
                )
        except KeyboardInterrupt:
            note("interrupted: to go on, run the same command with --resume")
            return None

    def targets(self) -> "list[Target]":
        """The targets to train on.

        Raises:
            ValueError: all of them are wrong.
        """
        from dlm.distill.certainty_targets import make_targets

        with Console(stderr=True).status("decoding targets") as status:
            found = make_targets(
                self.base,
                self.examples,
                self.teacher,
                self.out,
                chat=self.chat,
                name=self.name,
                report=lambda done, of: status.update(f"decoding targets {done}/{of}"),
            )
        kept = [each for each in found if not self.only_right or each.right is not False]
        if not kept:
            raise ValueError(f"--only-right leaves none of {len(found)} targets")
        return kept

    def write_merged(self, wrapped: Any) -> None:
        """Write the model with the adapter merged into its weights, for `dlm.load` to read."""
        whole = wrapped.merge_and_unload(safe_merge=True)
        whole.save_pretrained(self.out / MERGED)
        if self.base.tokenizer is not None:
            self.base.tokenizer.save_pretrained(self.out / MERGED)
