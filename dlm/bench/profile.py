"""Which functions of the engine take the time of a decoding."""

import cProfile
import pstats
from collections import Counter
from typing import Any

from dlm.bench.work import Work, random_prompts

TOP = 15  # functions listed
NETWORK = ("/dlm/models/", "/transformers/", "/torch/nn/", "/einops/")
"""Functions in these files, and any C code they call, count as the network."""

Function = tuple[str, int, str]  # file, line and name, as in cProfile


def profile(work: Work) -> list[dict[str, Any]]:
    """The network as a whole, then the engine functions that take the most time.

    The time of a function is its own and that of the C code it calls, and so of the kernels it
    runs. The profiler slows down Python but not kernels, so the shares of Python are too large. The
    first batch size is decoded twice, once to warm up.
    """
    model = work.model()
    prompts = random_prompts(model, [work.prompt_length] * work.batch_sizes[0])
    work.decode(model, prompts)
    watch = cProfile.Profile()
    out = watch.runcall(work.decode, model, prompts)
    stats: Any = pstats.Stats(watch)
    time, calls = by_function(stats.stats)
    total = sum(time.values())
    network = sum(spent for function, spent in time.items() if in_network(function))
    engine = {f: spent for f, spent in time.items() if not in_network(f)}
    most = sorted(engine, key=lambda f: -engine[f])[:TOP]
    rows = [row("the network", max(out.forwards), network, total)]
    rows += [row(name_of(f), calls[f], engine[f], total) for f in most]
    rest = sum(engine.values()) - sum(engine[f] for f in most)
    return [*rows, row("everything else", 0, rest, total)]


def row(name: str, calls: int, seconds: float, total: float) -> dict[str, Any]:
    """One line of a profile."""
    return {"function": name, "calls": calls, "ms": 1e3 * seconds, "share": seconds / total}


def by_function(stats: dict[Function, Any]) -> tuple[Counter[Function], Counter[Function]]:
    """Seconds and calls of each Python function, including the C functions it calls directly."""
    seconds: Counter[Function] = Counter()
    calls: Counter[Function] = Counter()
    for function, (_, count, own, _, callers) in stats.items():
        if not in_c(function) or not callers:
            seconds[function] += own
            calls[function] += count
            continue
        for caller, (_, _, spent, _) in callers.items():
            seconds[caller] += spent
    return seconds, calls


def in_c(function: Function) -> bool:
    """Whether a function has no Python source."""
    return function[0] == "~"


def in_network(function: Function) -> bool:
    """Whether a function belongs to the network."""
    return any(part in function[0] for part in NETWORK)


def name_of(function: Function) -> str:
    """Module, line and name: short, but unique."""
    file, line, name = function
    if in_c(function):
        return name
    return f"{'.'.join(file.removesuffix('.py').split('/')[-2:])}:{line} {name}"
