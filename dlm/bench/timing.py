"""Timing of several calls in turns, and statistics of the times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

WALL = "wall clock"


@dataclass(frozen=True, slots=True)
class Spread:
    """Order statistics of repeated measurements."""

    median: float
    least: float
    lower: float  # first quartile
    upper: float  # third quartile
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The statistics of one or more values."""
        points = list(values) if len(values) > 1 else 2 * list(values)
        lower, median, upper = statistics.quantiles(points, n=4, method="inclusive")
        return cls(median, min(values), lower, upper, max(values))

    def record(self) -> dict[str, float]:
        """The statistics as JSON values."""
        return asdict(self)


Times = dict[str, list[float]]
"""Seconds of each call, one value per round."""

Told = Callable[[str, int, int], None]
"""Called outside the timed parts with what is timed next, the calls done, and the total."""


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress."""


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    before: Callable[[], object] = lambda: None,
    told: Told = silent,
) -> Times:
    """Time every call once per round, so that other load on the machine slows all of them equally.

    A warm-up round comes first. Each round starts with the next call, and every second round runs
    in reverse, so that each call meets different cache contents.

    Args:
        calls: the functions to time, by name.
        repeats: rounds, at least 1.
        device: the device to wait for.
        before: called before every timed call, untimed.
        told: called before every call, including those of the warm-up.
    """
    total = len(calls) * (repeats + 1)
    for number, (name, call) in enumerate(calls.items()):
        told(name, number, total)
        call()

    def timed(call: Callable[[], object]) -> float:
        before()
        return seconds(call, device)

    timers = {name: partial(timed, call) for name, call in calls.items()}
    return rounds(timers, repeats, lambda name, done, _: told(name, done + len(calls), total))


def rounds(timers: Mapping[str, Callable[[], float]], repeats: int, told: Told = silent) -> Times:
    """The seconds that each timer returns, once per round, in the order of `take_turns`."""
    names = list(timers)
    times: Times = {name: [] for name in names}
    total = len(names) * repeats
    for number in range(repeats):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        for place, name in enumerate(reversed(order) if number % 2 else order):
            told(name, number * len(names) + place, total)
            times[name].append(timers[name]())
    return times


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, including its work on the device."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait for all work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Quotients per round: what disturbs a round affects both of its parts."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
