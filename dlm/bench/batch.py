"""Throughput of ragged batches, compared with one prompt at a time.

A batch gains as much as the network gains from it, which `step` measures: nothing, where one row
already keeps the machine busy, as on a CPU without a cache.
"""

from collections.abc import Iterator

from dlm.bench.count import forward_flops
from dlm.bench.decode import speeds
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.models.model import Model

SHORTEST = 16  # tokens of the shortest prompt


def measure(work: Work) -> Iterator[Result]:
    """Yield a result for each batch size; the longest prompt has `prompt_length` tokens."""
    model = work.model()
    for batch in work.batch_sizes:
        yield compare(work, model, batch)


def lengths(batch: int, longest: int) -> list[int]:
    """Prompt lengths, evenly from `SHORTEST` to the longest; half of that for one prompt."""
    if batch == 1:
        return [max(1, longest // 2)]
    shortest = min(SHORTEST, longest)
    return [shortest + (longest - shortest) * i // (batch - 1) for i in range(batch)]


def compare(work: Work, model: Model, batch: int) -> Result:
    """Time decoding all prompts at once and one by one, in turns."""
    sizes = lengths(batch, work.prompt_length)
    prompts = random_prompts(model, sizes)
    keys = list(range(batch))
    together: list[list[int]] = []
    apart: list[list[int]] = []

    def at_once() -> None:
        together[:] = work.decode(model, prompts, row_keys=keys).tokens

    def one_by_one() -> None:
        apart[:] = [
            work.decode(model, [prompt], row_keys=[key]).tokens[0]
            for key, prompt in zip(keys, prompts, strict=True)
        ]

    calls = {"batch": at_once, "one by one": one_by_one}
    times = take_turns(calls, work.repeats, model.device, told=work.told)
    return Result(
        bench="batch",
        case=work.case(model, batch_size=batch, shortest=min(sizes)),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={"one by one / batch": ratio(times["one by one"], times["batch"])},
        found={
            **speeds(times, batch * work.gen_length),
            "share of equal tokens": agreement(together, apart),
        },
        counted=counts(work, sizes) if work.cache == "none" else {},
    )


def counts(work: Work, sizes: list[int]) -> dict[str, int | float]:
    """Flops of a whole forward pass without the projection: the cost of padding without a cache."""

    def flops(batch: int, length: int, tokens: int) -> int:
        rows = length + work.gen_length
        return forward_flops(work.sizes, batch, rows, 0, tokens=tokens + batch * work.gen_length)

    batch, longest, tokens = len(sizes), max(sizes), sum(sizes)
    packed = flops(batch, longest, tokens)
    real = sum(flops(1, size, size) for size in sizes)
    return {
        "flops of a whole forward, packed": packed,
        "flops of the same forwards, one by one": real,
        "padding left in attention": 1 - real / packed,
        "padding without packing": 1 - real / flops(batch, longest, batch * longest),
    }
