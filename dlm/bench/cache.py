"""What reusing keys and values saves, and how much of the result it leaves."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dlm.bench.decode import speeds
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.generation import Generation
from dlm.models.model import Model
from dlm.options import integer
from dlm.traits import CACHES


def measure(work: Work, around: int = 0, prompt_every: int | None = None) -> Iterator[Result]:
    """One result for each batch size.

    Args:
        work: what to decode.
        around: tokens that a dual cache more computes around a block; 0 for no such cache.
        prompt_every: forwards until a dual cache more makes prompts anew; None for no such cache.

    Raises:
        ValueError: one of these is no such number.
    """
    integer("refresh_around", around, least=0)
    options: dict[str, dict[str, Any]] = {name: {"cache": name} for name in CACHES}
    if around:
        options[f"dual and {around} around"] = {"cache": "dual", "refresh_around": around}
    if prompt_every is not None:
        integer("refresh_prompt_every", prompt_every, least=1)
        seldom = {"cache": "dual", "refresh_prompt_every": prompt_every}
        options[f"dual, prompts every {prompt_every}"] = seldom
    model = work.model()
    for batch in work.batch_sizes:
        yield compare(work, model, batch, options)


def compare(work: Work, model: Model, batch: int, options: dict[str, dict[str, Any]]) -> Result:
    """All caches in turns."""
    prompts = random_prompts(model, [work.prompt_length] * batch)
    outs: dict[str, Generation] = {}

    def decode(name: str) -> None:
        outs[name] = work.decode(model, prompts, **options[name])

    calls: dict[str, Callable[[], object]] = {name: partial(decode, name) for name in options}
    times = take_turns(calls, work.repeats, model.device, told=work.told)
    others = [name for name in options if name != "none"]
    whole = outs["none"]
    computed = {name: sum(outs[name].query_tokens) for name in options}
    return Result(
        bench="cache",
        case=work.case(model, batch_size=batch),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={f"none / {name}": ratio(times["none"], times[name]) for name in others},
        found={
            **speeds(times, batch * work.gen_length),
            **{f"forwards, {name}": max(outs[name].forwards) for name in options},
            **{f"query tokens, {name}": computed[name] for name in options},
            **{
                f"share of tokens as without, {name}": agreement(outs[name].tokens, whole.tokens)
                for name in others
            },
        },
        counted={
            f"query tokens none / {name}": computed["none"] / computed[name] for name in others
        },
    )
