"""Tokens a second of `generate`, against a plain loop and against the network alone."""

from collections.abc import Callable, Iterator
from typing import Any

from dlm.bench.baselines import plain_loop
from dlm.bench.ceilings import Ceilings, ceilings
from dlm.bench.count import read_weights
from dlm.bench.replay import Recorder, replay
from dlm.bench.result import Result
from dlm.bench.step import rates, totals
from dlm.bench.timing import Spread, Times, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.models.model import Model

SAME_POLICY = "low_confidence"  # what the plain loop does


def measure(work: Work) -> Iterator[Result]:
    """One result for each batch size; the plain loop takes the rows one by one.

    Raises:
        ValueError: lengths that the plain loop cannot divide.
    """
    check(work)
    model = work.model()
    most = ceilings(model.device, model.network.dtype)
    for batch in work.batch_sizes:
        yield compare(work, model, batch, most)


def check(work: Work) -> None:
    """Refuse what published loops refuse."""
    blocks, rest = divmod(work.gen_length, work.block_length)
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


def compare(work: Work, model: Model, batch: int, most: Ceilings) -> Result:
    """The engine, the loop and, without a cache, the bare calls in turns."""
    recorder = Recorder.of(model)
    prompts = random_prompts(model, [work.prompt_length] * batch)
    generated: list[list[int]] = []
    looped: list[list[int]] = []
    bare = work.cache == "none"  # calls against a cache cannot be made again without it
    same = work.decoder == SAME_POLICY and bare
    recorded = work.decode(recorder if bare else model, prompts)
    steps = work.gen_length if work.steps is None else work.steps

    def engine() -> None:
        generated[:] = work.decode(model, prompts).tokens

    def loop() -> None:
        lengths = {"gen_length": work.gen_length, "block_length": work.block_length}
        looped[:] = [plain_loop(model, prompt, steps=steps, **lengths) for prompt in prompts]

    calls: dict[str, Callable[[], object]] = {
        "dlm": engine,
        "plain loop": loop,
    }
    if bare:
        calls["network"] = lambda: replay(model, recorder.calls)
    times = take_turns(calls, work.repeats, model.device)
    if same and max(recorded.forwards) != steps:
        raise ValueError(f"the engine took {max(recorded.forwards)} forwards, the loop {steps}")
    return Result(
        bench="decode",
        case=work.case(model, batch_size=batch),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={
            "plain loop / dlm": ratio(times["plain loop"], times["dlm"]),
            **({"dlm / network": ratio(times["dlm"], times["network"])} if bare else {}),
        },
        found={
            **speeds(times, batch * work.gen_length),
            "forwards of the plain loop": batch * steps,
            "same policy": same,
            "share of equal tokens": agreement(generated, looped) if same else None,
            **pace(work, model, times, max(recorded.forwards), most),
            **(rates(work.sizes, recorder.calls, times, model, most) if bare else {}),
        },
        counted=totals(work.sizes, recorder.calls, model) if bare else {},
    )


def pace(
    work: Work, model: Model, times: Times, forwards: int, most: Ceilings
) -> dict[str, int | float]:
    """What a forward takes in all, beside the reading of the weights, which is the least."""
    seconds = Spread.of(times["dlm"]).median / forwards
    weights = read_weights(work.sizes) * model.network.dtype.itemsize
    return {
        "forwards": forwards,
        "dlm ms per forward": 1e3 * seconds,
        "dlm forward / reading the weights once": seconds * most.bandwidth / weights,
    }


def speeds(times: Times, tokens: int) -> dict[str, Any]:
    """Tokens a second of each."""
    return {
        f"tokens per second, {name}": tokens / Spread.of(values).median
        for name, values in times.items()
    }
