"""`dlm bench`: measure speed on this machine, with plain baselines timed in the same run."""

import json as json_format
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli.bars import on_terminal
from dlm.cli.bench_options import (
    AnswerEvery,
    BatchSizes,
    BlockLength,
    CacheName,
    DecodedEvery,
    Device,
    Dtype,
    GenLength,
    Json,
    Layers,
    Out,
    Policy,
    PromptEvery,
    PromptLength,
    Repeats,
    ShapeName,
    Steps,
    Threads,
)
from dlm.cli.errors import Commands
from dlm.cli.inputs import parse_options
from dlm.cli.lists import print_table
from dlm.cli.options import (
    COUNT,
    REAL,
    DecoderOptions,
    RefreshAround,
    decoding,
    output,
    run,
)
from dlm.cli.results import print_json, try_file

if TYPE_CHECKING:
    from dlm.bench.result import Result
    from dlm.bench.timing import Told

HEAD = ["quantity", "median", "least .. most"]

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure speed against plain baselines.")


@dataclass(frozen=True, slots=True)
class Sink:
    """Where results are written: stdout, and a file if `out` is set."""

    machine: bool
    out: Path | None
    told: "Told"  # progress callback; an empty text clears its line

    def __post_init__(self) -> None:
        """Check that the file can be written before any result could be lost.

        Raises:
            ValueError: the file cannot be written.
        """
        if self.out is not None:
            try_file("--out", self.out)

    def write(self, results: "Iterable[Result]", device: str | None) -> None:
        """Print each result as soon as it is measured."""
        from dlm.bench.machine import describe
        from dlm.models.placement import check_device

        surroundings = describe(check_device(device))
        try:
            for result in results:
                self.told("", 0, 0)
                self.keep(result, surroundings)
        finally:  # clear the progress line, so that an error is printed on a line of its own
            self.told("", 0, 0)

    def keep(self, result: "Result", surroundings: Mapping[str, Any]) -> None:
        """Print one result and append it to the file."""
        record = result.record(surroundings)
        if self.out is not None:
            with self.out.open("a") as stream:
                stream.write(json_format.dumps(record) + "\n")
        if self.machine:
            print_json(record)
        else:
            show(result, surroundings)


def show(result: "Result", surroundings: Mapping[str, Any]) -> None:
    """Print a result as a table."""
    machine = surroundings["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    typer.echo(f"{result.title()} ({where})")
    print_table(HEAD, result.rows())
    typer.echo()


def ticker() -> "Told":
    """A callback that shows on stderr, if it is a terminal, what is timed; without a thread."""
    seen = on_terminal()

    def told(what: str, done: int, total: int) -> None:
        if seen:
            line = f"{what}, {done + 1} of {total}" if total else ""
            typer.echo(f"\r\x1b[K{line}", err=True, nl=False)

    return told


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Run with this number of CPU threads, then restore the previous number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode_with(name: str, options: dict[str, Any]) -> None:
    """Run the whole-decoding benchmark `name` with the options of its command."""
    from importlib import import_module

    from dlm.bench.work import Work

    told = ticker()
    sink = Sink(options.pop("json"), options.pop("out"), told)
    profiled = options.pop("profile", False)
    more = beside(options)
    options["decoder_options"] = parse_options(options.pop("option"))
    with threads_set(options.pop("threads")):
        work = Work(batch_sizes=tuple(options.pop("batch_size")), told=told, **options)
        if profiled:
            if sink.out is not None:
                raise ValueError("--profile prints functions and no result: leave --out away")
            show_profile(work, machine=sink.machine)
            return
        bench = import_module(f"dlm.bench.{name}")
        sink.write(bench.measure(work, *more), work.device)


def beside(options: dict[str, Any]) -> tuple[Any, ...]:
    """Take out of `options` the arguments of `cache` and `serve` that `Work` does not have."""
    if "refresh_around" in options:  # of `cache`, which measures each of them
        from dlm.bench.cache import LABELS

        return ({name: options.pop(name) for name in LABELS},)
    if "requests" not in options:
        return ()
    from dlm.bench.serve import Traffic

    return (Traffic(options.pop("requests"), options.pop("load")),)


def show_profile(work: Any, *, machine: bool) -> None:
    """Print which functions take the time of a decoding."""
    from dlm.bench.profile import profile

    rows = profile(work)
    if machine:
        for row in rows:
            print_json(row)
        return
    cells = [
        [row["function"], str(row["calls"]), f"{row['ms']:.1f}", f"{row['share']:.1%}"]
        for row in rows
    ]
    print_table(["function", "calls", "ms", "share"], cells)


@app.command("sampling")
def sampling(  # noqa: PLR0913 (the parameters are the command line)
    rows: Annotated[
        list[int] | None,
        run(
            help="Rows sampled at once; repeatable.",
            show_default="32; on a GPU also 256 and 1024",
            **COUNT,
        ),
    ] = None,
    positions: Annotated[
        int, run(help="Rows that a published loop samples at each step.", **COUNT)
    ] = 256,
    vocabulary: Annotated[int, run(help="Number of logits in a row.", **COUNT)] = 126464,
    dtype: Annotated[
        list[str] | None,
        run(help="Data type of the logits; repeatable.", show_default="bfloat16 and float32"),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        run(help="Sampling temperature; repeatable.", show_default="0 and 1", **REAL),
    ] = None,
    device: Device = None,
    repeats: Repeats = 7,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Statistics and a sample of each row of logits, against float64 copies of the vocabulary."""
    from dlm.bench.sampling import SamplingOptions, measure

    given: dict[str, Any] = {}
    if dtype:
        given["dtypes"] = tuple(dtype)
    if temperature:
        given["temperatures"] = tuple(temperature)
    counts = tuple(rows or row_counts(device))
    told = ticker()
    options = SamplingOptions(
        counts, positions, vocabulary, device=device, repeats=repeats, told=told, **given
    )
    with threads_set(threads):
        Sink(json, out, told).write(measure(options), device)


@app.command("step")
def step(  # noqa: PLR0913
    shape: ShapeName = "25m",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 192,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    profile: Annotated[
        bool, output("--profile", help="List the functions that take most time instead.")
    ] = False,
    device: Device = None,
    repeats: Repeats = 5,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Time spent outside the network, compared with the network's forward passes alone."""
    decode_with("step", locals() | {"batch_size": batch_size or [1, 8]})


@app.command("decode")
def decode(  # noqa: PLR0913
    shape: ShapeName = "25m",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 64,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    cache: CacheName = "none",
    refresh_answer_every: AnswerEvery = None,
    refresh_prompt_every: PromptEvery = None,
    refresh_decoded_every: DecodedEvery = None,
    device: Device = None,
    repeats: Repeats = 5,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Tokens per second, compared with a plain loop and with the network alone."""
    decode_with("decode", locals() | {"batch_size": batch_size or [1]})


@app.command("cache")
def cache(  # noqa: PLR0913
    shape: ShapeName = "25m",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 512,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    refresh_around: RefreshAround = 0,
    refresh_answer_every: AnswerEvery = None,
    refresh_prompt_every: PromptEvery = None,
    refresh_decoded_every: DecodedEvery = None,
    device: Device = None,
    repeats: Repeats = 5,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """What prefix and dual caches save with a long prompt, and what they change.

    The dual cache is also measured with each refresh option that is given, and with all of them.
    """
    decode_with("cache", locals() | {"batch_size": batch_size or [1]})


@app.command("quantize")
def quantize(  # noqa: PLR0913
    shape: ShapeName = "25m",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 64,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    cache: CacheName = "none",
    device: Device = None,
    repeats: Repeats = 5,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Weights and activations as 8-bit integers (w8a8), compared with the data type of --dtype."""
    decode_with("quantize", locals() | {"batch_size": batch_size or [1, 8]})


@app.command("batch")
def batch(  # noqa: PLR0913
    shape: ShapeName = "tiny",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 256,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    cache: CacheName = "none",
    refresh_answer_every: AnswerEvery = None,
    refresh_prompt_every: PromptEvery = None,
    refresh_decoded_every: DecodedEvery = None,
    device: Device = None,
    repeats: Repeats = 5,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Ragged batches (prompts of 16 to --prompt-length tokens), compared with one at a time."""
    decode_with("batch", locals() | {"batch_size": batch_size or ragged_sizes(device)})


@app.command("serve")
def serve(  # noqa: PLR0913
    shape: ShapeName = "tiny",
    layers: Layers = None,
    dtype: Dtype = "auto",
    batch_size: BatchSizes = None,
    prompt_length: PromptLength = 256,
    gen_length: GenLength = 64,
    block_length: BlockLength = 32,
    decoder: Policy = "low_confidence",
    option: DecoderOptions = None,
    steps: Steps = None,
    cache: CacheName = "dual",
    refresh_answer_every: AnswerEvery = None,
    refresh_prompt_every: PromptEvery = None,
    refresh_decoded_every: DecodedEvery = None,
    requests: Annotated[int, decoding(help="Number of requests.", **COUNT)] = 24,
    load: Annotated[
        float, decoding(help="Requests that arrive in the time one takes alone.", **REAL)
    ] = 1.5,
    device: Device = None,
    repeats: Repeats = 3,
    threads: Threads = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Continuous batching of arriving requests, compared with fixed batches and one at a time."""
    decode_with("serve", locals() | {"batch_size": batch_size or [8]})


def ragged_sizes(device: str | None) -> list[int]:
    """Default batch sizes: one on a CPU; on a GPU also larger ones."""
    return [8] if on_cpu(device) else [1, 4, 16, 32]


def row_counts(device: str | None) -> list[int]:
    """Default numbers of rows: one on a CPU; on a GPU also those of a whole batch of blocks."""
    return [32] if on_cpu(device) else [32, 256, 1024]


def on_cpu(device: str | None) -> bool:
    """Whether the option selects the CPU, as it does by default."""
    return device is None or device.startswith("cpu")
