"""Statistics and a sample of every row, against float64 copies of the vocabulary.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm.bench.baselines import float64_path, plain_scores
from dlm.bench.ceilings import Ceilings, ceilings
from dlm.bench.count import logits_bytes
from dlm.bench.memory import method, peak_extra_bytes
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.kernels import NoiseKey, TokenStatistics, token_statistics
from dlm.models.loading import check_device, check_dtype
from dlm.options import integer, number

EVICTED = 1 << 28  # bytes written ahead of every call, so that no cache holds the logits


@dataclass(frozen=True, slots=True)
class Rows:
    """What to sample from.

    Raises:
        ValueError: an option breaks its rule.
    """

    rows: int = 32  # masks of a block
    positions: int = 256  # of a whole generation, which published loops sample at each step
    vocabulary: int = 126464
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    temperatures: tuple[float, ...] = (0.0, 1.0)
    device: str | None = None
    repeats: int = 7

    def __post_init__(self) -> None:
        integer("rows", self.rows, least=1)
        integer("positions", self.positions, least=self.rows)
        integer("vocabulary", self.vocabulary, least=2)
        integer("repeats", self.repeats, least=1)
        for temperature in self.temperatures:
            number("temperature", temperature, least=0.0)


def measure(options: Rows) -> Iterator[Result]:
    """One result for each dtype and temperature."""
    device = check_device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    shape = (options.positions, options.vocabulary)
    for name in options.dtypes:
        dtype = check_dtype(name)
        if isinstance(dtype, str):
            raise ValueError(f"dtype must be one of bfloat16, float16 and float32, got {name!r}")
        logits = torch.randn(shape, generator=generator, device=device).mul_(3).to(dtype)
        most = ceilings(device, dtype)
        for temperature in options.temperatures:
            yield compare(logits, temperature, options, most)


@torch.inference_mode()
def compare(every: Tensor, temperature: float, options: Rows, most: Ceilings) -> Result:
    """Time and memory of both paths on the same rows."""
    device, few = every.device, every[: options.rows]
    key = noise(options.rows, device)

    def ours() -> TokenStatistics:
        return token_statistics(few, ("confidence",), temperature=temperature, key=key)

    everywhere = f"float64, {options.positions} rows"
    calls: dict[str, Callable[[], object]] = {
        "dlm": ours,
        "float64": lambda: float64_path(few, temperature),
        everywhere: lambda: float64_path(every, temperature),
        "maximum and log-sum-exp": lambda: plain_scores(few),
    }
    other = torch.empty(EVICTED, dtype=torch.uint8, device=device)
    times = take_turns(calls, options.repeats, device, other.zero_)
    del other
    peaks = {name: peak_extra_bytes(call, device) for name, call in calls.items()}
    least = logits_bytes(options.rows, options.vocabulary, every.element_size())
    bandwidth = least / Spread.of(times["dlm"]).median
    return Result(
        bench="sampling",
        case={
            "rows": options.rows,
            "vocabulary": options.vocabulary,
            "dtype": str(every.dtype).removeprefix("torch."),
            "temperature": temperature,
            "device": device.type,
            "repeats": options.repeats,
        },
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={f"{n} / dlm": ratio(t, times["dlm"]) for n, t in times.items() if n != "dlm"},
        found={
            **check(few, temperature, ours()),
            **{f"peak extra bytes, {name}": peaks[name] for name in calls},
            "memory share of float64": peaks["dlm"] / peaks["float64"],
            f"memory share of {everywhere}": peaks["dlm"] / peaks[everywhere],
            "memory measured by": method(device),
            "logits read per second, bytes": bandwidth,
            "copy bytes per second": most.bandwidth,
            "share of copy bandwidth": bandwidth / most.bandwidth,
        },
        counted={
            "least bytes, one read of the logits": least,
            "one float64 copy of the rows, bytes": logits_bytes(
                options.rows, options.vocabulary, 8
            ),
        },
    )


def noise(rows: int, device: torch.device) -> NoiseKey:
    """The noise of some rows."""
    index = torch.arange(rows, device=device)
    return NoiseKey(0, index, index, torch.zeros_like(index))


def check(logits: Tensor, temperature: float, ours: TokenStatistics) -> dict[str, Any]:
    """Whether both paths do the same work: their arg max, and what is said of the sample.

    Raises:
        ValueError: the arg max differs.
    """
    assert ours.confidence is not None
    if not temperature and not torch.equal(ours.sampled, logits.argmax(-1)):
        raise ValueError("token_statistics took another arg max than the baseline")
    shares = logits.double().softmax(-1).gather(-1, ours.sampled[:, None])[:, 0]
    error = (ours.confidence.double() / shares - 1).abs().max()
    return {"largest relative error of confidence": float(error)}
