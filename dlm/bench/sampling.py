"""Statistics and a sample of every row, compared with float64 copies of the vocabulary.

On a CPU, the wall clock times single calls, and the caches are filled with other data before each.
On a GPU, device time is measured: a recording contains calls on different rows, more of them than
the caches can hold, and is replayed many times.

Shapes: N rows, P rows of the pool that they are taken from, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlm.bench.baselines import float64_path, plain_scores
from dlm.bench.ceilings import Ceilings, ceilings, move
from dlm.bench.count import logits_bytes
from dlm.bench.events import Gpu, Timed, gpu_of
from dlm.bench.memory import method, peak_extra_bytes
from dlm.bench.result import Result
from dlm.bench.timing import WALL, Spread, Times, Told, ratio, rounds, silent, take_turns
from dlm.kernels import NoiseKey, TokenStatistics, token_statistics
from dlm.models.loading import check_dtype
from dlm.models.placement import check_device
from dlm.options import integer, number

EVICTED = 1 << 28  # bytes read between two reads of the same logits, to evict them from all caches

Part = Callable[[Tensor], object]  # what a contender does with some rows


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What to sample from.

    Raises:
        ValueError: an option is out of range.
    """

    rows: tuple[int, ...] = (32,)  # masks of one block, or of the blocks of a batch
    positions: int = 256  # of a whole generation, which published loops sample at each step
    vocabulary: int = 126464
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    temperatures: tuple[float, ...] = (0.0, 1.0)
    device: str | None = None
    repeats: int = 7
    told: Told = silent  # called before every timed call

    def __post_init__(self) -> None:
        for rows in self.rows:
            integer("rows", rows, least=1)
        integer("positions", self.positions, least=min(self.rows))
        integer("vocabulary", self.vocabulary, least=2)
        integer("repeats", self.repeats, least=1)
        for temperature in self.temperatures:
            number("temperature", temperature, least=0.0)

    @property
    def most(self) -> int:
        """Rows that the largest contender needs."""
        return max(*self.rows, self.positions)


def measure(options: SamplingOptions) -> Iterator[Result]:
    """Yield a result for each dtype, temperature and number of rows."""
    device = check_device(options.device)
    gpu = gpu_of(device)
    generator = torch.Generator(device).manual_seed(0)
    for name in options.dtypes:
        dtype = check_dtype(name)
        if isinstance(dtype, str):
            raise ValueError(f"dtype must be one of bfloat16, float16 and float32, got {name!r}")
        count = options.most if gpu is None else pooled(options, dtype)
        shape = (count, options.vocabulary)
        logits = torch.randn(shape, generator=generator, device=device).mul_(3).to(dtype)
        most = ceilings(device, dtype, gpu)
        for temperature in options.temperatures:
            for rows in options.rows:
                yield compare(logits, rows, temperature, options, most, gpu)


def pooled(options: SamplingOptions, dtype: torch.dtype) -> int:
    """Number of rows in a pool too large for any cache."""
    return max(options.most, math.ceil(EVICTED / (options.vocabulary * dtype.itemsize)))


@torch.inference_mode()
def compare(
    pool: Tensor,
    rows: int,
    temperature: float,
    options: SamplingOptions,
    most: Ceilings,
    gpu: Gpu | None,
) -> Result:
    """Compare time and memory of all contenders."""
    device, few = pool.device, pool[:rows]
    key = noise(rows, device)

    def ours(logits: Tensor) -> TokenStatistics:
        return token_statistics(logits, ("confidence",), temperature=temperature, key=key)

    parts = contenders(ours, rows, temperature, options.positions)
    times, by = clocked(parts, pool, options, gpu)
    peaks = {n: peak_extra_bytes(partial(f, pool[:c]), device) for n, (c, f) in parts.items()}
    least = logits_bytes(rows, options.vocabulary, pool.element_size())
    bandwidth = least / Spread.of(times["dlm"]).median
    shares = {
        f"memory share of {name}": peaks["dlm"] / peaks[name]
        for name in peaks
        if name.startswith("float64")
    }
    return Result(
        bench="sampling",
        case={
            "rows": rows,
            "vocabulary": options.vocabulary,
            "dtype": str(pool.dtype).removeprefix("torch."),
            "temperature": temperature,
            "device": device.type,
            "repeats": options.repeats,
        },
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={f"{n} / dlm": ratio(t, times["dlm"]) for n, t in times.items() if n != "dlm"},
        found={
            **check(few, temperature, ours(few)),
            **{f"peak extra bytes, {name}": peak for name, peak in peaks.items()},
            **shares,
            "memory measured by": method(device),
            **by,
            "logits read per second, bytes": bandwidth,
            "copy bytes per second": most.bandwidth,
            "copy timed by": most.by,
            "share of copy bandwidth": bandwidth / most.bandwidth,
        },
        counted={
            "least bytes, one read of the logits": least,
            "one float64 copy of the rows, bytes": logits_bytes(rows, options.vocabulary, 8),
        },
    )


def contenders(
    ours: Part, rows: int, temperature: float, positions: int
) -> dict[str, tuple[int, Part]]:
    """The number of rows that each contender processes, and its function."""
    wide = partial(float64_path, temperature=temperature)
    made: dict[str, tuple[int, Part]] = {"dlm": (rows, ours), "float64": (rows, wide)}
    if rows <= positions:
        made[f"float64, {positions} rows"] = (positions, wide)
    return made | {"maximum and log-sum-exp": (rows, plain_scores)}


def clocked(
    parts: dict[str, tuple[int, Part]], pool: Tensor, options: SamplingOptions, gpu: Gpu | None
) -> tuple[Times, dict[str, str]]:
    """Seconds of one call of each contender, and how they were measured."""
    if gpu is None:
        calls = {name: partial(part, pool[:count]) for name, (count, part) in parts.items()}
        other = torch.empty(EVICTED, dtype=torch.uint8, device=pool.device)
        times = take_turns(calls, options.repeats, pool.device, other.zero_, options.told)
        return times, {"timed by": WALL}
    rows, _ = parts["dlm"]
    spare = torch.empty_like(pool)
    timed = {
        name: Timed.of(gpu, [partial(part, some) for some in slices(pool, count)])
        for name, (count, part) in parts.items()
    }
    pairs = zip(slices(pool, rows), slices(spare, rows), strict=True)
    timed["copy of as many bytes"] = Timed.of(gpu, [partial(copy_half, *pair) for pair in pairs])
    timers = {name: each.seconds for name, each in timed.items()}
    times = rounds(timers, options.repeats, options.told)
    own = timed["dlm"].by
    others = {f"timed by, {n}": each.by for n, each in timed.items() if each.by != own}
    return times, {"timed by": own, **others}


def slices(pool: Tensor, rows: int) -> list[Tensor]:
    """Split the pool [P, V] into parts [N, V]."""
    return [pool[begin : begin + rows] for begin in range(0, len(pool) - rows + 1, rows)]


def copy_half(source: Tensor, target: Tensor) -> None:
    """Read half the bytes of [N, V] and write as many."""
    half = source.numel() // 2
    move(source.view(-1)[:half], target.view(-1)[:half])


def noise(rows: int, device: torch.device) -> NoiseKey:
    """The noise key of some rows."""
    index = torch.arange(rows, device=device)
    none = torch.zeros_like(index)
    return NoiseKey(none, index, index, none)  # with one seed for each row, as in the engine


def check(logits: Tensor, temperature: float, ours: TokenStatistics) -> dict[str, Any]:
    """Check that both paths do the same work: the arg max, and the confidence of the sample.

    Raises:
        ValueError: the arg max differs.
    """
    assert ours.confidence is not None
    if not temperature and not torch.equal(ours.sampled, logits.argmax(-1)):
        raise ValueError("token_statistics took another arg max than the baseline")
    shares = logits.double().softmax(-1).gather(-1, ours.sampled[:, None])[:, 0]
    error = (ours.confidence.double() / shares - 1).abs().max()
    return {"largest relative error of confidence": float(error)}
