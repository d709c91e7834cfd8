"""A run from the command line: checks before it, progress during it, and results after it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import dlm
from dlm.cli import job as cli_job
from dlm.cli.bars import bar, on_terminal
from dlm.cli.errors import INTERRUPTED
from dlm.cli.lists import print_table
from dlm.cli.loading import load_model, model_name
from dlm.cli.meter import duration
from dlm.cli.results import note, print_json
from dlm.eval import repeats
from dlm.eval.counting import DEFINITIONS, Counts
from dlm.eval.folder import Run, digest, samples_in
from dlm.eval.plan import (
    Plan,
    check_preset,
    check_samples,
    choose_options,
    choose_templates,
    make_plan,
    named_templates,
    settings_of,
)
from dlm.eval.repeats import check_pass_at
from dlm.eval.runner import Executor, Progress, evaluate
from dlm.eval.source import load_problems
from dlm.eval.summary import HEAD, Row, cells, facts, figure_cells, launched, spread, summarise
from dlm.eval.task import Check, Task
from dlm.eval.world import World

if TYPE_CHECKING:
    from dlm.eval.sandbox import Sandbox

EVERY = 30.0  # seconds between lines without a terminal
RUNS = Path("runs") / "eval"


@dataclass(frozen=True, slots=True)
class Crew:
    """A sandbox, and the number of programs that it runs in parallel."""

    box: "Sandbox"
    workers: int

    def run_all(self, checks: list[Check]) -> list[Any]:
        """Run all checks; returns one outcome for each, in their order."""
        return self.box.run_all(checks, workers=self.workers)

    def facts(self) -> dict[str, Any]:
        """What determines the outcome of a check; the number of workers does not."""
        return self.box.facts()


@dataclass(frozen=True, slots=True)
class Job:
    """One call of `dlm eval TASK`."""

    task: Task
    model: str | None
    device: str | None
    dtype: str
    adapter: str | None  # PEFT LoRA, added to the weights
    facts: dict[str, Any]  # other options of `load_model`
    templates: list[str]
    preset: str | None
    options: dict[str, Any]
    data: Path | None
    shots: Path | None
    limit: int | None
    batch_size: int
    output: Path | None
    workers: int
    unsafe: bool
    machine: bool  # print JSON instead of a table
    samples: int | None = None  # per problem; None: as many as in the folder
    pass_at: tuple[int, ...] = ()  # k of each pass@k; the usual ones if empty

    def run(self) -> None:
        """Evaluate and print the table; of several processes, one prints for all."""
        options = choose_options(self.task, self.preset, self.options)
        self.check(options)
        sandbox = self.sandbox()
        world = World.of()
        world.check_spread(self.facts)
        loaded = load_model(
            self.model,
            world.device(self.device),
            self.dtype,
            adapter=self.adapter,
            **self.facts,
        )
        check_preset(self.task, self.preset, self.options, loaded)
        chat = loaded.tokenizer is not None and loaded.tokenizer.chat_template is not None
        templates = choose_templates(self.task, self.templates, chat=chat, preset=self.preset)
        plan = make_plan(
            self.task,
            templates,
            options,
            data=self.data,
            shots=self.shots,
            limit=self.limit,
            samples=self.samples or 1,
        )
        name = model_name(self.model, self.adapter, self.facts.get("revision"))
        folder = self.output or default_folder(plan, loaded, name, sandbox)
        if self.samples is None:
            plan = replace(plan, samples=samples_in(folder))
            check_pass_at(self.pass_at, plan.samples)
        world.join()
        with display(self.task.name, quiet=bool(world.rank) or self.machine) as report:
            try:
                run = evaluate(
                    loaded,
                    plan,
                    folder,
                    name=name,
                    batch_size=self.batch_size,
                    sandbox=sandbox,
                    world=world,
                    report=report,
                )
            except KeyboardInterrupt:
                note(f"interrupted: the same command goes on with {folder}")
                raise typer.Exit(INTERRUPTED) from None
        world.leave()
        if not world.rank:
            show(run, machine=self.machine, pass_at=self.pass_at)

    def check(self, options: dict[str, Any]) -> None:
        """Refuse invalid options before a model is loaded."""
        cli_job.Job([], options, chat=False, infill=self.task.infills).check()
        if self.samples is not None:
            check_samples(self.samples, options)
            check_pass_at(self.pass_at, self.samples)
        named_templates(self.task, self.templates)
        for package in self.task.requires:
            if find_spec(package) is None:
                raise ValueError(f'{self.task.name} needs {package}: pip install -e ".[eval]"')
        load_problems(self.task, self.data, self.limit)

    def sandbox(self) -> Executor | None:
        """The sandbox for generated code, after printing how well it protects."""
        if not self.task.runs_code:
            return None
        from dlm.eval.sandbox import Sandbox

        box = Sandbox.find(unsafe=self.unsafe)
        if not World.of().rank:
            for line in box.statement().splitlines():
                note(line)
        return Crew(box, self.workers)


def default_folder(plan: Plan, model: dlm.Model, name: str, sandbox: Executor | None) -> Path:
    """The default folder, a different one for every combination of settings."""
    settings = settings_of(plan, model, name, sandbox.facts() if sandbox else None)
    return RUNS / f"{plan.task.name}-{settings['decoder']}-{digest(settings)}"


@contextmanager
def display(task: str, *, quiet: bool) -> Iterator[Any]:
    """Show a bar on a terminal, otherwise a line from time to time, on stderr.

    Yields:
        A function to call with the progress.
    """
    if quiet or not on_terminal():
        yield None if quiet else Lines(task).tell
        return
    with bar() as update:
        yield lambda progress: update(told(task, progress), progress.done, progress.total)


class Lines:
    """Prints progress lines on stderr, at most one every `EVERY` seconds."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.last = time.monotonic()

    def tell(self, progress: Progress) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            typer.echo(told(self.task, progress), err=True)


def told(task: str, progress: Progress) -> str:
    """The progress of a run as one line."""
    rate = f"{progress.response_tokens_per_second:,.1f} response tokens/s"
    return (
        f"{task} {progress.done:,}/{progress.total:,}  {progress.score:.1%}  {rate}  "
        f"{duration(progress.seconds_left)} left"
    )


def show(run: Run, *, machine: bool, pass_at: Sequence[int] = ()) -> None:
    """Print the table of a run, or a JSON object for each of its rows."""
    rows = summarise(run, pass_at=pass_at)
    if machine:
        for row in rows:
            print_json(record(row))
        return
    print_table(list(HEAD), [cells(row) for row in rows])
    if len(rows) > 1:
        low, high = spread(rows)
        typer.echo(f"\nover {len(rows)} templates: {low:.1%} - {high:.1%}")
    if run.repeats > 1:
        typer.echo()
        print_table(list(repeats.HEAD), [line for row in rows for line in figure_cells(row)])
    too_long = sum(row.too_long for row in rows)
    if too_long:
        typer.echo(f"\n{too_long} prompts were too long for the model and count as failed")
    measures = [each.measure for row in rows for each in row.figures]
    several = repeats.definitions(measures) if run.repeats > 1 else []
    for name, meaning in (*several, *DEFINITIONS):
        note(f"{name}: {meaning}")
    note(facts(run))
    note(f"wrote {run.folder}: see dlm eval report {run.folder}")


def costs(counts: Counts) -> dict[str, float | None]:
    """The costs of decoding as JSON; None where nothing was decoded."""
    found = {
        "forwards": counts.forwards_per_row,
        "query_tokens": counts.query_tokens_per_row,
        "response_tokens_per_forward": counts.response_tokens_per_forward,
        "tokens_per_forward": counts.tokens_per_forward,
        "response_tokens_per_second": counts.response_tokens_per_second,
        "tokens_per_second": counts.tokens_per_second,
    }
    return {name: value if counts.samples else None for name, value in found.items()}


def measured(row: Row, kind: str) -> dict[str, Any]:
    """The measures of one kind as JSON, by their k."""
    return {
        str(each.measure.k): {
            "value": each.value,
            "interval": None if each.interval is None else list(each.interval),
            "problems": each.problems,
        }
        for each in row.figures
        if each.measure.kind == kind
    }


def record(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    counts, settings = row.counts, row.run.settings
    return {
        "task": settings["task"],
        "task_version": settings["task_version"],
        "model": settings["model"],
        "decoder": settings["decoder"],
        "decoder_options": settings["decoder_options"],
        "template": row.template,
        "samples": row.count,
        "complete": row.run.complete,
        "problems": row.problems,
        "samples_per_problem": row.run.repeats,
        "too_long": row.too_long,
        "score": row.score,
        "interval": list(row.interval),
        "scores": row.scores,
        **{f"{kind}_at": measured(row, kind) for kind in (repeats.PASS, repeats.MAJORITY)},
        **costs(counts),
        "device": settings["device"],
        "dtype": settings["dtype"],
        "seed": settings["generation"]["seed"],
        "dlm": settings["dlm"],
        "execution": settings.get("execution"),
        **{name: launched(row.run, name) for name in ("torch", "python", "commit", "batch_size")},
        "settings": row.run.hash,
        "folder": str(row.run.folder),
    }
