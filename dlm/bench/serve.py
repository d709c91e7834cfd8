"""Continuous batching of arriving requests, compared with fixed batches and single requests.

All contenders receive the same requests at the same times. The measure is how long a request waits
for its answer, from its arrival.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Final

from dlm.bench.batch import lengths
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, rounds, seconds, wait
from dlm.bench.work import Work, random_prompts
from dlm.generation import finish
from dlm.job import make_job
from dlm.models.model import Model
from dlm.options import integer, number
from dlm.serving.engine import Engine
from dlm.serving.work import Ended, Event, Request
from dlm.settings import Settings

SHORTEST = 4  # the shortest request decodes this fraction (1 / SHORTEST) of `gen_length`
LEAST_LOAD: Final = 1e-6  # one request in the time that a million take one after another
WARM: Final = 3  # warm-up rounds on a GPU


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many requests arrive, and how fast.

    Raises:
        ValueError: an option is out of range.
    """

    requests: int
    load: float  # requests that arrive in the time that one takes alone

    def __post_init__(self) -> None:
        integer("requests", self.requests, least=1)
        number("load", self.load, least=LEAST_LOAD)


def measure(work: Work, traffic: Traffic) -> Iterator[Result]:
    """Yield a result for each batch size."""
    model = work.model()
    requests = requests_of(work, model, traffic.requests)
    alone = []
    for request in requests:
        answer(model, [request])  # warm up
        alone.append(seconds(partial(answer, model, [request]), model.device))
    gap = sum(alone) / len(alone) / traffic.load
    for batch in work.batch_sizes:
        yield compare(work, model, batch, requests, traffic, gap)


def requests_of(work: Work, model: Model, count: int) -> list[Request]:
    """Requests with prompts and answers of different lengths, in random order."""
    shuffled = random.Random(0)
    prompts = random_prompts(model, lengths(count, work.prompt_length))
    least = max(1, work.gen_length // SHORTEST)
    spans = [least + (work.gen_length - least) * n // max(1, count - 1) for n in range(count)]
    shuffled.shuffle(prompts)
    shuffled.shuffle(spans)
    made = []
    for prompt, blanks in zip(prompts, spans, strict=True):
        settings = Settings(**{**work.options, "gen_length": blanks, "row_keys": (0,)})
        row = [*prompt, *[model.spec.mask_id] * blanks]
        made.append(Request([row], [(len(prompt), len(row))], settings))
    return made


def compare(
    work: Work,
    model: Model,
    batch: int,
    requests: Sequence[Request],
    traffic: Traffic,
    gap: float,
) -> Result:
    """Mean waiting times of each contender, round by round."""
    ends: dict[str, list[float]] = {}

    def timed(name: str, serve: Callable[..., list[float]]) -> float:
        wait(model.device)
        began = time.perf_counter()
        comes = [began + place * gap for place in range(len(requests))]
        over = serve(requests, comes)
        ends.setdefault(name, []).append(max(over) - began)
        return sum(end - come for end, come in zip(over, comes, strict=True)) / len(comes)

    engine = Engine(model, batch_size=batch, queue_size=len(requests))
    contenders = {
        "joining": partial(joined, engine),
        "batches": partial(batched, model, batch),
        "one by one": partial(batched, model, 1),
    }
    timers = {name: partial(timed, name, serve) for name, serve in contenders.items()}
    try:
        # Warm up. A GPU needs several rounds to record steps, as rows join differently in each
        # round.
        rounds(timers, WARM if model.device.type == "cuda" else 1, work.told)
        ends.clear()
        times = rounds(timers, work.repeats, work.told)
    finally:
        engine.close()
    tokens = sum(end - begin for request in requests for begin, end in request.spans)
    return Result(
        bench="serve",
        case=work.case(
            model, batch_size=batch, requests=traffic.requests, load=traffic.load, gap=gap
        ),
        seconds={f"answer, {name}": Spread.of(values) for name, values in times.items()},
        ratios={
            f"{name} / joining": ratio(times[name], times["joining"])
            for name in ("batches", "one by one")
        },
        found={
            f"{name}, tokens/s": tokens / Spread.of(totals).median for name, totals in ends.items()
        },
    )


def joined(engine: Engine, requests: Sequence[Request], comes: Sequence[float]) -> list[float]:
    """Submit requests to an engine at these times; returns when each was answered."""
    over = [0.0] * len(requests)
    done: SimpleQueue[Event] = SimpleQueue()

    def tell(place: int, event: Event) -> None:
        over[place] = time.perf_counter()
        done.put(event)

    for place, (request, come) in enumerate(zip(requests, comes, strict=True)):
        time.sleep(max(0.0, come - time.perf_counter()))
        engine.submit(request, partial(tell, place))
    for event in (done.get() for _ in requests):
        if not isinstance(event, Ended):
            raise RuntimeError(f"a request was not answered: {event}")
    return over


def batched(
    model: Model, batch: int, requests: Sequence[Request], comes: Sequence[float]
) -> list[float]:
    """As `joined`, but decode all waiting requests as one batch, which later ones wait for."""
    over: list[float] = []
    while len(over) < len(requests):
        first = len(over)
        time.sleep(max(0.0, comes[first] - time.perf_counter()))
        now = time.perf_counter()
        some = [place for place in range(first, len(requests)) if comes[place] <= now][:batch]
        answer(model, [requests[place] for place in some])
        over += [time.perf_counter()] * len(some)
    return over


def answer(model: Model, requests: Sequence[Request]) -> None:
    """Decode requests as one batch that no further row joins."""
    rows = [row for request in requests for row in request.rows]
    spans = [span for request in requests for span in request.spans]
    settings = replace(requests[0].settings, row_keys=[0] * len(rows))
    finish(make_job(model, rows, spans, settings))
