"""Time that the engine spends outside the network, per forward pass.

A decoding is recorded, and then its network calls are repeated back to back. The rest of the
decoding's time is the engine: windows, statistics, the decoder, writing tokens, checks and text.
"""

from collections.abc import Iterator
from typing import Any

import torch

from dlm.bench.ceilings import Ceilings, ceilings
from dlm.bench.count import forward_flops, read_weights
from dlm.bench.events import gpu_of
from dlm.bench.replay import PLAIN, Call, Recorder, replay
from dlm.bench.result import Result
from dlm.bench.shapes import Shape
from dlm.bench.timing import Spread, Times, ratio, take_turns
from dlm.bench.work import Work, random_prompts
from dlm.models.model import Model


def measure(work: Work) -> Iterator[Result]:
    """Yield a result for each batch size."""
    model = work.model()
    most = ceilings(model.device, model.network.dtype, gpu_of(model.device))
    for batch in work.batch_sizes:
        yield compare(work, model, batch, most)


def compare(work: Work, model: Model, batch: int, most: Ceilings) -> Result:
    """Time a decoding, and its network calls alone."""
    recorder = Recorder.of(model)
    prompts = random_prompts(model, [work.prompt_length] * batch)
    inside: list[float] = []

    def decode() -> None:
        recorder.clear()
        work.decode(recorder, prompts)
        inside.append(sum(recorder.seconds))

    calls = {"decode": decode, "network": lambda: replay(model, recorder.calls)}
    times = take_turns(calls, work.repeats, model.device, told=work.told)
    outside = engine_seconds(times, inside[1:], model.device)
    engine = Spread.of(outside).median / count_forwards(recorder.calls)
    return Result(
        bench="step",
        case=work.case(model, batch_size=batch),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios=shares(times, inside[1:], model.device),
        found={
            "engine ms per forward": 1e3 * engine,
            "network run by": PLAIN,
            **rates(work.sizes, recorder.calls, times, model, most),
        },
        counted=totals(work.sizes, recorder.calls, model),
    )


def engine_seconds(times: Times, inside: list[float], device: torch.device) -> list[float]:
    """Seconds that each decoding spent outside the network, by the more precise method available.

    On a CPU that is a clock around every network call. On a GPU such a call only launches work, so
    the calls repeated alone are subtracted instead.
    """
    network = inside if device.type == "cpu" else times["network"]
    return [a - b for a, b in zip(times["decode"], network, strict=True)]


def shares(times: Times, inside: list[float], device: torch.device) -> dict[str, Spread]:
    """Engine time over network time, by the calls repeated alone and, on a CPU, by the clock."""
    outside = [a - b for a, b in zip(times["decode"], times["network"], strict=True)]
    made = {"(decode - network) / network": ratio(outside, times["network"])}
    if device.type == "cpu":
        rest = engine_seconds(times, inside, device)
        made["outside / inside network calls"] = ratio(rest, inside)
    return made


def rates(
    shape: Shape, calls: list[Call], times: Times, model: Model, most: Ceilings
) -> dict[str, Any]:
    """How close the network alone comes to the ceilings."""
    forwards = count_forwards(calls)
    network = Spread.of(times["network"]).median
    flops = count_flops(shape, calls) / network
    weights = read_weights(shape) * model.network.dtype.itemsize
    return {
        "forwards": forwards,
        "network ms per forward": 1e3 * network / forwards,
        "network flops per second": flops,
        **most.record(),
        "share of matmul flops": flops / most.matmul,
        "forward / reading the weights once": network / forwards * most.bandwidth / weights,
    }


def totals(shape: Shape, calls: list[Call], model: Model) -> dict[str, Any]:
    """Totals computed from shapes."""
    return {
        "flops of all forwards": count_flops(shape, calls),
        "bytes of the weights": read_weights(shape) * model.network.dtype.itemsize,
    }


def count_forwards(calls: list[Call]) -> int:
    """Number of calls of `hidden`."""
    return sum(bool(call.arguments) for call in calls)


def count_flops(shape: Shape, calls: list[Call]) -> int:
    """Flops of the network calls of a decoding."""
    total = 0
    for call in calls:
        if call.arguments:
            total += forward_flops(shape, *call.size, 0, tokens=call.rows)
        else:
            total += forward_flops(shape, 0, 0, call.rows)
    return total
