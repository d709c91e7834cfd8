"""How much reusing keys and values saves, and how far it changes the result."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from dlm.bench.decode import speeds
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.models.model import Model
from dlm.outputs import Generation
from dlm.settings import Settings
from dlm.traits import CACHES

LABELS = {
    "refresh_around": "dual and {} around",
    "refresh_answer_every": "dual, answers every {}",
    "refresh_prompt_every": "dual, prompts every {}",
    "refresh_decoded_every": "dual, what is decoded every {}",
}


def measure(work: Work, beside: Mapping[str, int | None]) -> Iterator[Result]:
    """Yield a result for each batch size.

    Args:
        work: what to decode.
        beside: values of the options in `LABELS`; each given one is measured with a dual cache, and
            then all of them together.

    Raises:
        ValueError: a value is invalid.
    """
    given = {name: value for name, value in beside.items() if value not in (None, 0)}
    Settings(cache="dual", **given)  # type: ignore[arg-type]
    options: dict[str, dict[str, Any]] = {name: {"cache": name} for name in CACHES}
    for name, value in given.items():
        options[LABELS[name].format(value)] = {"cache": "dual", name: value}
    if len(given) > 1:
        options["dual, all of these"] = {"cache": "dual", **given}
    model = work.model()
    for batch in work.batch_sizes:
        yield compare(work, model, batch, options)


def compare(work: Work, model: Model, batch: int, options: dict[str, dict[str, Any]]) -> Result:
    """Time all caches in turns."""
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
