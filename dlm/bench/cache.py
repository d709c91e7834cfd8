"""What reusing keys and values saves, and how much of the result it leaves."""

from collections.abc import Callable, Iterator
from functools import partial

from dlm.bench.decode import speeds
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.generation import Generation
from dlm.models.model import Model
from dlm.traits import CACHES


def measure(work: Work) -> Iterator[Result]:
    """One result for each batch size."""
    model = work.model()
    for batch in work.batch_sizes:
        yield compare(work, model, batch)


def compare(work: Work, model: Model, batch: int) -> Result:
    """All caches in turns."""
    prompts = random_prompts(model, [work.prompt_length] * batch)
    outs: dict[str, Generation] = {}

    def decode(cache: str) -> None:
        outs[cache] = work.decode(model, prompts, cache=cache)

    calls: dict[str, Callable[[], object]] = {name: partial(decode, name) for name in CACHES}
    times = take_turns(calls, work.repeats, model.device)
    others = [name for name in CACHES if name != "none"]
    whole = outs["none"]
    computed = {name: sum(outs[name].query_tokens) for name in CACHES}
    return Result(
        bench="cache",
        case=work.case(model, batch_size=batch),
        seconds={name: Spread.of(values) for name, values in times.items()},
        ratios={f"none / {name}": ratio(times["none"], times[name]) for name in others},
        found={
            **speeds(times, batch * work.gen_length),
            **{f"forwards, {name}": max(outs[name].forwards) for name in CACHES},
            **{f"query tokens, {name}": computed[name] for name in CACHES},
            **{
                f"share of tokens as without, {name}": agreement(outs[name].tokens, whole.tokens)
                for name in others
            },
        },
        counted={
            f"query tokens none / {name}": computed["none"] / computed[name] for name in others
        },
    )
