"""Running of a task: decode, score, write samples, and resume where a killed run stopped.

Finished samples are written in batches while others are decoded. A row depends only on its prompt,
its key and the options, so neither the batch size, the number of processes nor a kill in between
changes a sample.
"""

import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

import dlm
from dlm.eval.decode import Item, Output, decode, undecoded, warm_up
from dlm.eval.folder import SAMPLES, Appender, Folder, Run, digest, merge, merged, read_run
from dlm.eval.plan import Plan, settings_of
from dlm.eval.sample import Key, Sample
from dlm.eval.score import Verdict, nothing, score
from dlm.eval.task import Check
from dlm.eval.world import World
from dlm.options import integer


class Executor(Protocol):
    """Runs generated code: `dlm.eval.Sandbox`, or a replacement for it."""

    def run_all(self, checks: list[Check]) -> Sequence[Any]:
        """Run all checks; returns one outcome for each, in their order."""

    def facts(self) -> dict[str, Any]:
        """What determines the outcome of a check, as JSON, including `sandbox` and `python`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of this process after a batch."""

    done: int  # samples of this process in this start
    total: int
    score: float  # mean over the samples done
    response_tokens_per_second: float
    seconds_left: float


def evaluate(
    model: dlm.Model,
    plan: Plan,
    output: Path,
    *,
    name: str,
    batch_size: int = 16,
    sandbox: Executor | None = None,
    world: World | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Run:
    """Decode and score the samples of a plan that the folder does not have yet.

    Args:
        model: a model from `dlm.load`.
        plan: what to decode.
        output: the folder to write to, or to resume from.
        name: the name of the model.
        batch_size: prompts decoded at once; does not change results.
        sandbox: runs generated code; for tasks that need it.
        world: the processes of the run, which this process has joined.
        report: called after every batch.

    Raises:
        ValueError: an option is invalid, or the folder contains another run or is in use.
    """
    integer("batch_size", batch_size, least=1)
    if plan.task.runs_code and sandbox is None:
        raise ValueError(f"sandbox must be given for {plan.task.name}, which runs generated code")
    if sandbox is not None and not plan.task.runs_code:
        raise ValueError(f"sandbox is for tasks that run generated code, not for {plan.task.name}")
    world = world or World()
    items = plan.items(model)
    check_items(model, plan, items)
    settings = settings_of(plan, model, name, sandbox.facts() if sandbox else None)
    world.agree(settings)
    run_all = sandbox.run_all if sandbox else refuse_code
    worker = Worker(model, plan, items, digest(settings), run_all, report)
    with ExitStack() as held:

        def begin() -> None:
            folder = held.enter_context(Folder(output))
            launch = launch_facts(plan, batch_size, world)
            sizes, vote = len(plan.problems), plan.task.metrics[0].vote
            folder.open(settings, sizes, launch, samples=plan.samples, vote=vote)

        world.first(begin)
        worker.work(output, world, batch_size)
        world.first(partial(merge, output, digest(settings)))
    return read_run(output)


def check_items(model: dlm.Model, plan: Plan, items: Sequence[Item]) -> None:
    """Refuse options that do not fit the model or the problems.

    Raises:
        ValueError: an option does not fit.
    """
    options, positions = plan.options, places(model, infills=plan.task.infills)
    name = "max_gen_length" if plan.task.infills else "gen_length"
    if (length := options[name]) is not None and length >= positions:
        raise ValueError(f"{name} must be below the model's {positions} positions, got {length}")
    if not plan.task.infills:
        return
    for item in items:
        if item.most(options) < len(item.blanks or ()):
            raise ValueError(
                f"max_gen_length must hold the blanks of each problem, got {item.most(options)} "
                f"for the {len(item.blanks or ())} of {item.problem.id!r} under template "
                f"{item.template.name!r}"
            )
    fitting = (each.tokens for each in items if each.given + each.most(options) <= positions)
    for tokens in islice(fitting, 1):
        dlm.infill_each(model, [tokens], **options)  # checks the options, and decodes nothing yet


class Worker:
    """The share of the work that one process does."""

    def __init__(
        self,
        model: dlm.Model,
        plan: Plan,
        items: Sequence[Item],
        settings: str,
        run_all: Callable[[list[Check]], Sequence[Any]],
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.items = items
        self.settings = settings
        self.run_all = run_all
        self.report = report

    def work(self, output: Path, world: World, batch_size: int) -> None:
        """Do the remaining work, and wait for the other processes."""
        known = merged([output / SAMPLES], self.settings)
        world.wait()  # no process appends while others still read
        left = [item for item in self.items if item.key not in known]
        longest_first = sorted(left, key=lambda each: -len(each.tokens))
        path = output / (f"samples.rank{world.rank}.jsonl" if world.rank else SAMPLES)
        appender = Appender(path)
        try:
            self.run(longest_first[world.rank :: world.size], appender, batch_size)
        finally:
            appender.close()
        world.wait()

    def run(self, items: list[Item], appender: Appender, batch_size: int) -> None:
        """Decode items; score and write each group of outputs as it is done."""
        sizes = {item.key: item.given + item.most(self.plan.options) for item in items}
        room = places(self.model, infills=self.plan.task.infills)
        fitting = [item for item in items if sizes[item.key] <= room]
        others = [item for item in items if sizes[item.key] > room]
        pace = Pace(len(items), {item.key: sizes[item.key] for item in fitting})
        if others:
            self.finish([undecoded(item) for item in others], appender, pace)
        if fitting:
            warm_up(self.model, fitting[0], self.plan.options)
        pace.start()
        for outputs in decode(self.model, fitting, self.plan.options, batch_size):
            self.finish(outputs, appender, pace)

    def finish(self, outputs: list[Output], appender: Appender, pace: "Pace") -> None:
        """Score some outputs, write them and report progress."""
        samples = self.score(outputs)
        appender.add(samples)
        pace.add(samples)
        if self.report is not None:
            self.report(pace.progress())

    def score(self, outputs: list[Output]) -> list[Sample]:
        """Outputs as scored samples, in their order."""
        texts = [each.item.template.cut(each.text) for each in outputs]
        verdicts = self.verdicts(outputs, texts)
        return [
            Sample(
                task=self.plan.task.name,
                template=each.item.template.name,
                id=each.item.problem.id,
                index=each.item.index,
                repeat=each.item.repeat,
                prompt=each.item.prompt,
                prompt_tokens=each.item.given,
                output=text,
                tokens=each.tokens,
                order=each.order,
                response_tokens=each.response_tokens,
                decoded_tokens=each.decoded_tokens,
                forwards=each.forwards,
                query_tokens=each.query_tokens,
                seconds=each.seconds,
                answer=each.item.problem.answer,
                extracted=verdict.extracted,
                vote=verdict.vote,
                scores=verdict.scores,
                score=verdict.score,
                detail=verdict.detail if each.forwards else self.too_long(each.item),
                seed=self.plan.options["seed"],
                settings=self.settings,
            )
            for each, text, verdict in zip(outputs, texts, verdicts, strict=True)
        ]

    def verdicts(self, outputs: Sequence[Output], texts: Sequence[str]) -> list[Verdict]:
        """Score the texts of outputs; what was not decoded gets an empty verdict."""
        task = self.plan.task
        pairs = [(a.item.problem, b) for a, b in zip(outputs, texts, strict=True) if a.forwards]
        found = iter(score(task, [a for a, _ in pairs], [b for _, b in pairs], self.run_all))
        return [next(found) if each.forwards else nothing(task) for each in outputs]

    def too_long(self, item: Item) -> str:
        """The reason why an item was not decoded."""
        return (
            f"{item.given} prompt tokens and {item.most(self.plan.options)} to decode exceed the "
            f"model's {places(self.model, infills=self.plan.task.infills)} positions"
        )


def places(model: dlm.Model, *, infills: bool = False) -> int:
    """Positions for a prompt and its answer; some families close every row with further ids.

    With `infills`, those ids are part of a row's tokens, so they are not subtracted.
    """
    return model.spec.max_length - (0 if infills else len(model.spec.suffix))


def refuse_code(checks: list[Check]) -> list[Any]:
    """The executor of tasks that run no code."""
    assert not checks
    return []


class Pace:
    """The speed of this process, and its remaining time."""

    def __init__(self, total: int, sizes: Mapping[Key, int]) -> None:
        self.total = total
        self.sizes = sizes  # positions to decode at, of each item that is decoded
        self.work = sum(sizes.values())
        self.worked = self.done = self.tokens = 0
        self.score = self.decoding = 0.0
        self.start()

    def start(self) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def add(self, samples: Sequence[Sample]) -> None:
        """Add samples."""
        self.done += len(samples)
        self.score += sum(each.score for each in samples)
        self.tokens += sum(each.response_tokens for each in samples)
        self.decoding += sum(each.seconds for each in samples)
        self.worked += sum(self.sizes[each.key] for each in samples if each.forwards)

    def progress(self) -> Progress:
        """The current progress."""
        seconds = time.perf_counter() - self.began
        left = seconds * (self.work - self.worked) / self.worked if self.worked else 0.0
        return Progress(
            done=self.done,
            total=self.total,
            score=self.score / self.done,
            response_tokens_per_second=self.tokens / self.decoding if self.decoding else 0.0,
            seconds_left=left,
        )


def launch_facts(plan: Plan, batch_size: int, world: World) -> dict[str, Any]:
    """Where and when a run was started, and with which versions."""
    return {
        "data": plan.data["origin"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "batch_size": batch_size,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of this checkout, marked if files differ; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None
