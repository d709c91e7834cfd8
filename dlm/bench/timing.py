"""Times of several calls that take turns, and what to say of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

WALL = "wall clock"


@dataclass(frozen=True, slots=True)
class Spread:
    """Order statistics of repeats."""

    median: float
    least: float
    lower: float  # first quartile
    upper: float  # third quartile
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Those of at least one value."""
        points = list(values) if len(values) > 1 else 2 * list(values)
        lower, median, upper = statistics.quantiles(points, n=4, method="inclusive")
        return cls(median, min(values), lower, upper, max(values))

    def record(self) -> dict[str, float]:
        """As JSON holds it."""
        return asdict(self)


Times = dict[str, list[float]]
"""Seconds of each call, one a round."""

Told = Callable[[str, int, int], None]
"""Called off the clock: what is timed next, how many calls of a measurement are done, and of how
many."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    before: Callable[[], object] = lambda: None,
    told: Told = silent,
) -> Times:
    """Time every call once a round, so that a busy machine slows all of them alike.

    One round before the first warms up. Rounds start with one call after another, every second one
    goes backwards: what a call leaves in the caches does not always meet the same successor.

    Args:
        calls: what to time, by name.
        repeats: rounds, at least 1.
        device: what to wait for.
        before: what to do ahead of every timed call, off the clock.
        told: hears of every call, of those that warm up, too.
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
    """The seconds that each timer tells, once a round, in the order of `take_turns`."""
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
    """Wall time of one call, the device's share included."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait for all that was asked of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Quotients round by round: what disturbs a round disturbs both of its parts."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
