"""What 8-bit integers save.

How they change results is for `dlm eval` to measure; random weights tell nothing about it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from dlm.bench.decode import speeds
from dlm.bench.result import Result
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, random_prompts
from dlm.huggingface.quantization import W8A8Config, quantize
from dlm.models.int8 import layers_of
from dlm.models.model import Model

ROUNDED = "w8a8"


def measure(work: Work) -> Iterator[Result]:
    """Yield a result for each batch size."""
    plain, rounded = work.model(), work.model()
    quantize(rounded.network, W8A8Config())
    for batch in work.batch_sizes:
        yield compare(work, plain, rounded, batch)


def compare(work: Work, plain: Model, rounded: Model, batch: int) -> Result:
    """Time a network and its quantized copy in turns."""
    name = str(plain.network.dtype).removeprefix("torch.")
    models = {name: plain, ROUNDED: rounded}
    prompts = random_prompts(plain, [work.prompt_length] * batch)
    forwards: dict[str, int] = {}

    def decode(which: str) -> None:
        forwards[which] = max(work.decode(models[which], prompts).forwards)

    calls: dict[str, Callable[[], object]] = {which: partial(decode, which) for which in models}
    times = take_turns(calls, work.repeats, plain.device, told=work.told)
    return Result(
        bench="quantize",
        case=work.case(plain, batch_size=batch),
        seconds={which: Spread.of(values) for which, values in times.items()},
        ratios={f"{name} / {ROUNDED}": ratio(times[name], times[ROUNDED])},
        found={
            **speeds(times, batch * work.gen_length),
            **{f"forwards, {which}": count for which, count in forwards.items()},
            **{f"bytes of the weights, {which}": size(model) for which, model in models.items()},
        },
    )


def size(model: Model) -> int:
    """Bytes of all weights; transformers counts only parameters and buffers of modules."""
    layers = [each for each in layers_of(model.network).values() if each.matrices]
    whole = sum(shape.numel() for layer in layers for shape in layer.shapes.values())
    return int(model.network.get_memory_footprint()) + whole
