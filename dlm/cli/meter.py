"""Progress reports of a training run."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dlm.cli.results import print_json

if TYPE_CHECKING:
    from dlm.training.loop import Progress as Step

HALF_LIFE = 50  # steps after which a value has half its weight


class Average:
    """Exponential moving average, without bias towards its start."""

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        keep = 0.5 ** (1 / HALF_LIFE)
        self.total = keep * self.total + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)

    @property
    def value(self) -> float:
        """The average so far."""
        return self.total / self.weight if self.weight else 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One step and the averages up to it: a line of `--json`."""

    step: int  # steps done
    steps: int  # of the run
    task: str
    loss: float  # nats per masked token
    smoothed_loss: float
    tokens_per_second: float  # smoothed
    learning_rate: float
    seconds: float  # since the start, or since the run was resumed
    seconds_left: float

    def line(self) -> str:
        """The reading as one line of text."""
        return (
            f"step {self.step}/{self.steps}  loss {self.smoothed_loss:.3f}  "
            f"{self.tokens_per_second:,.0f} tokens/s  {duration(self.seconds_left)} left"
        )


class Meter:
    """Averages over the steps of a run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.began = self.last = time.perf_counter()
        self.loss, self.rate, self.pace = Average(), Average(), Average()

    def read(self, step: "Step") -> Reading:
        """Add a step."""
        now = time.perf_counter()
        self.loss.add(step.loss)
        self.rate.add(step.tokens_per_second)
        self.pace.add(now - self.last)
        self.last = now
        return Reading(
            step=step.step,
            steps=self.steps,
            task=step.task,
            loss=step.loss,
            smoothed_loss=self.loss.value,
            tokens_per_second=self.rate.value,
            learning_rate=step.learning_rate,
            seconds=now - self.began,
            seconds_left=self.pace.value * (self.steps - step.step),
        )


class Display:
    """A bar on a terminal; otherwise, every few steps, a line on stderr or JSON on stdout."""

    def __init__(self, steps: int, *, every: int, machine: bool) -> None:
        self.meter = Meter(steps)
        self.every = every
        self.machine = machine
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                BarColumn(bar_width=30),
                TextColumn("{task.description}", markup=False),
                console=console,
                transient=True,
                redirect_stdout=False,
            )
            self.task = self.bar.add_task("starting")

    def __enter__(self) -> "Display":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, step: "Step") -> None:
        """Add a step, and show it if it is due."""
        reading = self.meter.read(step)
        if self.bar is not None:
            self.bar.update(
                self.task,
                description=reading.line(),
                completed=reading.step,
                total=reading.steps,
            )
        if reading.step % self.every and reading.step != reading.steps:
            return
        if self.machine:
            print_json(asdict(reading))
        elif self.bar is None:
            typer.echo(reading.line(), err=True)


def duration(seconds: float) -> str:
    """A time as h:mm:ss, or as m:ss below one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
