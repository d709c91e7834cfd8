"""Tokens per second of `generate`, compared with a plain loop and with the network alone."""

from collections.abc import Callable, Iterator
from typing import Any

from dlm.bench.baselines import plain_loop
from dlm.bench.ceilings import Ceilings, ceilings
from dlm.bench.count import read_weights
from dlm.bench.events import Gpu, gpu_of
from dlm.bench.replay import Alone, Recorder
from dlm.bench.result import Result
from dlm.bench.step import rates, totals
from dlm.bench.steps import told, watched
from dlm.bench.timing import Spread, Times, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.execution import release
from dlm.models.model import Model

SAME_POLICY = "low_confidence"  # the decoder of the plain loop


def measure(work: Work) -> Iterator[Result]:
    """Yield a result for each batch size.

    Raises:
        ValueError: the plain loop cannot divide the lengths evenly.
    """
    check(work)
    model = work.model()
    gpu = gpu_of(model.device)
    most = ceilings(model.device, model.network.dtype, gpu)
    for batch in work.batch_sizes:
        yield compare(work, model, batch, most, gpu)


def check(work: Work) -> None:
    """Refuse lengths and steps that published loops refuse."""
    blocks, rest = divmod(work.gen_length, work.block)
    if rest:
        raise ValueError(
            "block_length must divide gen_length for the plain loop, "
            f"got {work.block_length} and {work.gen_length}"
        )
    if work.steps is not None and (work.steps % blocks or work.steps > work.gen_length):
        raise ValueError(
            f"steps must be a multiple of the {blocks} blocks and at most gen_length for the "
            f"plain loop, got {work.steps}"
        )


def compare(work: Work, model: Model, batch: int, most: Ceilings, gpu: Gpu | None) -> Result:
    """Time the engine, the plain loop and, without a cache, the network calls alone, in turns."""
    recorder = Recorder.of(model)
    prompts = random_prompts(model, [work.prompt_length] * batch)
    generated: list[list[int]] = []
    looped: list[list[int]] = []
    bare = work.cache == "none"  # calls that use a cache cannot be repeated without it
    same = work.decoder == SAME_POLICY and bare
    recorded = work.decode(recorder if bare else model, prompts)
    steps = work.gen_length if work.steps is None else work.steps

    def engine() -> None:
        generated[:] = work.decode(model, prompts).tokens

    def loop() -> None:
        lengths = {"gen_length": work.gen_length, "block_length": work.block}
        looped[:] = plain_loop(model, prompts, steps=steps, **lengths)

    calls: dict[str, Callable[[], object]] = {"dlm": engine, "plain loop": loop}
    alone = Alone.of(model, recorder.calls, gpu) if bare else None
    if alone is not None and alone.run is not None:
        calls["network"] = alone.run
    times = take_turns(calls, work.repeats, model.device, told=work.told)
    if same and max(recorded.forwards) != steps:
        raise ValueError(f"the engine took {max(recorded.forwards)} forwards, the loop {steps}")
    return Result(
        bench="decode",
        case=work.case(model, batch_size=batch),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios=quotients(times),
        found={
            **speeds(times, batch * work.gen_length),
            "forwards of the plain loop": steps,
            "same policy": same,
            "share of equal tokens": agreement(generated, looped) if same else None,
            **pace(work, model, times, max(recorded.forwards), most),
            **({} if gpu is None else apart(work, model, prompts, most, gpu)),
            **({} if alone is None else {"network run by": alone.by}),
            **(rates(work.sizes, recorder.calls, times, model, most) if "network" in times else {}),
        },
        counted=totals(work.sizes, recorder.calls, model) if bare else {},
    )


def quotients(times: Times) -> dict[str, Spread]:
    """The loop over the engine, and the engine over the network if that was timed."""
    made = {"plain loop / dlm": ratio(times["plain loop"], times["dlm"])}
    if "network" in times:
        made["dlm / network"] = ratio(times["dlm"], times["network"])
    return made


def reading(work: Work, model: Model, most: Ceilings) -> float:
    """Seconds to read the weights once, a lower bound for a forward pass."""
    size: int = model.network.dtype.itemsize
    return read_weights(work.sizes) * size / most.bandwidth


def pace(
    work: Work, model: Model, times: Times, forwards: int, most: Ceilings
) -> dict[str, int | float]:
    """The total time per forward pass, also relative to reading the weights once."""
    seconds = Spread.of(times["dlm"]).median / forwards
    return {
        "forwards": forwards,
        "dlm ms per forward": 1e3 * seconds,
        "dlm forward / reading the weights once": seconds / reading(work, model, most),
    }


def apart(
    work: Work, model: Model, prompts: list[list[int]], most: Ceilings, gpu: Gpu
) -> dict[str, int | float]:
    """Times of replayed, recorded and plain steps in a decoding that starts without recordings."""
    release(model)
    with watched(gpu) as spans:
        work.decode(model, prompts)
    return told(spans, gpu, reading(work, model, most))


def speeds(times: Times, tokens: int) -> dict[str, Any]:
    """Tokens per second of each contender."""
    return {
        f"tokens per second, {name}": tokens / Spread.of(values).median
        for name, values in times.items()
    }
