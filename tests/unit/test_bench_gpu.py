"""How benchmarks time a GPU, with one that is made up, and `make bench-gpu`."""

import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch

from dlm.bench import decode, events, sampling
from dlm.bench.ceilings import Ceilings, best
from dlm.bench.events import GRAPH, PLAIN, Timed, UnrecordableError, gpu_of
from dlm.bench.replay import Alone, Recorder, forwards, shapes
from dlm.bench.result import Result
from dlm.bench.sampling import SamplingOptions, clocked, copy_half, pooled, slices
from dlm.bench.shapes import SHAPES, build
from dlm.bench.steps import KINDS, Span, told, watched
from dlm.bench.timing import WALL
from dlm.bench.work import Work, random_prompts
from dlm.execution import LANES, Execution
from dlm.lanes import Lanes
from dlm.models.model import Model
from dlm.recording import Record, Recording
from dlm.tree import mapped, tensors

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MOST = Ceilings(1e10, 1e11, WALL)
WORK = Work("tiny", (2,), prompt_length=7, gen_length=12, block_length=4, steps=9, repeats=1)


class Toy:
    """A device whose clock goes on as it is told, or with the wall's; recordings are the calls."""

    def __init__(self, *, records: bool = True, wall: bool = False) -> None:
        self.records = records
        self.wall = wall
        self.now = 0.0
        self.recordings = 0

    def record(self, call: Callable[[], object]) -> Callable[[], object]:
        call()
        if not self.records:
            raise UnrecordableError("operation not permitted when stream is capturing")
        self.recordings += 1
        return call

    def mark(self) -> float:
        return time.perf_counter() if self.wall else self.now

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Again(Recording):
    """The step once more, its results moved to where those of the first were."""

    def capture(self, whole: Callable[[], Any]) -> Any:
        self.whole = whole
        own = {id(each) for each in tensors((self.canvas, self.progress))}
        outcome = mapped(lambda x: x if id(x) in own else x.clone(), whole())
        self.memory = [None if id(x) in own else x for x in tensors(outcome)]
        return outcome

    def replay(self) -> None:
        made = [each.clone() for each in tensors(self.whole())]
        for kept, new in zip(self.memory, made, strict=True):
            if kept is not None:
                kept.copy_(new)


class Agains(Record):
    def __call__(self, *given: Any) -> Recording | None:
        return Again(*given)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return build(SHAPES["tiny"])


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine records its steps, but not those of a model that notes its calls."""

    def of(model: Model) -> Execution:
        if type(model) is not Model:
            return Execution()
        return Execution(static=True, lanes=LANES.setdefault(model.network, Lanes(Agains, 1 << 40)))

    LANES.clear()
    monkeypatch.setattr(Execution, "of", of)


# Device time


def test_a_cpu_has_the_wall_clock() -> None:
    assert gpu_of(CPU) is None
    calls: list[int] = []
    seconds, by = best(lambda: calls.append(1), CPU, None)
    assert (len(calls), by) == (6, WALL)
    assert seconds < 1


@pytest.mark.parametrize("records", [True, False])
def test_calls_are_timed_as_a_mean_of_many_plays(records: bool) -> None:
    gpu = Toy(records=records)
    made: list[str] = []

    def call(name: str, seconds: float) -> None:
        made.append(name)
        gpu.spend(seconds)

    timed = Timed.of(gpu, [partial(call, "a", 1e-3), partial(call, "b", 3e-3)])
    assert timed.plays == 5  # of 4 ms, for 20 ms
    made.clear()
    assert timed.seconds() == pytest.approx(2e-3)
    assert made == 5 * ["a", "b"]
    assert timed.by == (
        GRAPH if records else f"{PLAIN}: operation not permitted when stream is capturing"
    )


def test_a_ceiling_is_taken_in_the_same_way() -> None:
    gpu = Toy()
    seconds, by = best(lambda: gpu.spend(1e-3), CPU, gpu)
    assert seconds == pytest.approx(1e-3)
    assert by == GRAPH
    assert gpu.recordings == 1


# Sampling


def test_no_row_is_read_twice_before_all_others() -> None:
    pool = torch.arange(22).view(11, 2)
    parts = slices(pool, 3)
    assert torch.equal(torch.cat(parts), pool[:9])
    assert {len(part) for part in parts} == {3}
    assert pooled(SamplingOptions(), torch.bfloat16) * 126464 * 2 >= sampling.EVICTED
    assert pooled(SamplingOptions((32, 4096)), torch.bfloat16) == 4096


def test_a_copy_reads_and_writes_as_many_bytes_as_the_logits_have() -> None:
    source, target = torch.arange(12.0).view(3, 4), torch.zeros(3, 4)
    copy_half(source, target)
    assert torch.equal(target.flatten(), torch.cat((torch.arange(6.0), torch.zeros(6))))


def test_contenders_go_through_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LASTING", 0.0)
    pool = torch.arange(14.0).view(7, 2)
    seen: list[tuple[str, float]] = []

    def part(name: str, logits: torch.Tensor) -> None:
        seen.append((name, float(logits[0, 0])))
        gpu.spend(1e-3 * len(logits))

    gpu = Toy()
    parts: dict[str, tuple[int, Any]]
    parts = {"dlm": (2, partial(part, "dlm")), "wide": (6, partial(part, "wide"))}
    times, by = clocked(parts, pool, SamplingOptions(repeats=2), gpu)
    assert times["dlm"] == pytest.approx([2e-3, 2e-3])
    assert times["wide"] == pytest.approx([6e-3, 6e-3])
    assert {start for name, start in seen if name == "dlm"} == {0.0, 4.0, 8.0}
    assert {start for name, start in seen if name == "wide"} == {0.0}
    assert by == {"timed by": GRAPH}
    assert list(times) == ["dlm", "wide", "copy of as many bytes"]


def test_what_could_not_be_recorded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LASTING", 0.0)
    gpu = Toy(wall=True)

    def odd(_: torch.Tensor) -> None:
        gpu.records = False

    parts: dict[str, tuple[int, Any]] = {"dlm": (2, torch.clone), "odd": (2, odd)}
    _, by = clocked(parts, torch.zeros(4, 2), SamplingOptions(repeats=1), gpu)
    why = f"{PLAIN}: operation not permitted when stream is capturing"
    late = "timed by, copy of as many bytes"
    assert by == {"timed by": GRAPH, "timed by, odd": why, late: why}


@pytest.mark.parametrize(("rows", "wide"), [(2, ["float64, 4 rows"]), (6, [])])
def test_a_result_of_sampling_on_a_gpu(
    rows: int, wide: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LASTING", 0.0)
    gpu = Toy(wall=True)
    options = SamplingOptions((2, 6), positions=4, vocabulary=3000, repeats=2)
    pool = torch.randn(12, 3000)
    found = sampling.compare(pool, rows, 1.0, options, MOST, gpu)
    names = ["dlm", "float64", *wide, "maximum and log-sum-exp", "copy of as many bytes"]
    assert list(found.seconds) == names
    assert gpu.recordings == len(names)
    assert found.case["rows"] == rows
    assert found.found["timed by"] == GRAPH
    assert found.found["copy timed by"] == WALL
    shares = [name for name in found.found if name.startswith("memory share")]
    assert shares == [f"memory share of {name}" for name in ["float64", *wide]]


# Decoding


def test_forwards_of_one_shape_are_recorded_once(tiny: Model) -> None:
    recorder = Recorder.of(tiny)
    WORK.decode(recorder, random_prompts(tiny, [7, 7]))
    groups = forwards(recorder.calls)
    assert len(groups) == 9
    assert [call for group in groups for call in group] == recorder.calls
    gpu = Toy()
    again = Recorder.of(tiny)
    alone = Alone.of(again, recorder.calls, gpu)
    assert gpu.recordings == len({shapes(group) for group in groups}) == 3  # masks left
    assert alone.by == "3 CUDA graphs for 9 forwards"
    assert alone.run is not None
    again.clear()
    alone.run()
    assert [call.rows for call in again.calls] == [call.rows for call in recorder.calls]


def test_a_network_that_cannot_be_recorded_is_not_timed(tiny: Model) -> None:
    found = compare(WORK, tiny, Toy(records=False, wall=True))
    assert list(found.seconds) == ["dlm", "plain loop"]
    assert list(found.ratios) == ["plain loop / dlm"]
    assert found.found["network run by"] == (
        "not timed, as recording failed: operation not permitted when stream is capturing"
    )
    assert "share of matmul flops" not in found.found


def test_without_a_gpu_the_network_is_called_plainly(tiny: Model) -> None:
    found = compare(WORK, tiny, None)
    assert found.found["network run by"] == "plain calls"
    assert "dlm / network" in found.ratios
    assert not [name for name in found.found if name.startswith("steps")]


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(("cache", "steps"), [("none", (1, 1, 7, 0, 0, 0)), ("dual", None)])
def test_steps_are_told_apart(cache: str, steps: tuple[int, ...] | None, tiny: Model) -> None:
    work = Work("tiny", (2,), 7, 12, 4, steps=9, repeats=1, cache=cache)
    found = compare(work, tiny, Toy(wall=True)).found
    kinds = [f"{kind}, {part}" for part in ("whole rows", "window") for kind in KINDS]
    expected = steps or (1, 1, 1, 1, 1, 4)  # 3 blocks of 3 forwards, the first of each whole
    assert tuple(found[f"steps {kind}"] for kind in kinds) == expected
    for kind, count in zip(kinds, expected, strict=True):
        assert (f"ms per step {kind}" in found) == bool(count)
    part = "window" if steps is None else "whole rows"
    assert f"step replayed, {part} / reading the weights once" in found
    assert "ms from a replayed step to the next" in found


@pytest.mark.usefixtures("recording")
def test_watching_changes_nothing_and_leaves_nothing(tiny: Model) -> None:
    prompts = random_prompts(tiny, [7, 7])
    before = (Recording.__init__, Recording.__call__)
    with watched(Toy()) as spans:
        seen = WORK.decode(tiny, prompts).tokens
    assert (Recording.__init__, Recording.__call__) == before
    count = len(spans)
    assert WORK.decode(tiny, prompts).tokens == seen
    assert len(spans) == count == 9


def test_a_step_whose_recording_failed_is_a_plain_one(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Agains):
        def __call__(self, *_: Any) -> None:
            self.failed = True

    lanes = Lanes(Refusing, 0)
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=True, lanes=lanes))
    with watched(Toy()) as spans:
        WORK.decode(tiny, random_prompts(tiny, [7, 7]))
    assert {span.kind for span in spans} == {"plain"}


def test_medians_of_steps_and_of_the_gaps_between_them() -> None:
    ends = [(0.0, 9.0), (10.0, 14.0), (15.0, 17.0), (19.0, 21.0), (22.0, 26.0)]
    kinds = ["plain", "recorded", "replayed", "replayed", "replayed"]
    spans = [Span(kind, "window", *pair) for kind, pair in zip(kinds, ends, strict=True)]
    found = told(spans, Toy(), 0.5)
    assert found["ms per step plain, window"] == 9000
    assert found["ms per step replayed, window"] == 2000
    assert found["step replayed, window / reading the weights once"] == 4
    assert found["ms from a replayed step to the next"] == 1500
    both = "window and some whole rows"
    assert f"steps plain, {both}" not in found
    found = told([*spans, Span("recorded", both, 30.0, 37.0)], Toy(), 0.5)
    assert (found[f"steps recorded, {both}"], found[f"steps replayed, {both}"]) == (1, 0)
    assert found[f"ms per step recorded, {both}"] == 7000


def compare(work: Work, model: Model, gpu: Toy | None) -> Result:
    return decode.compare(work, model, 2, MOST, gpu)


# The command


def make(tmp_path: Path, fails: str) -> tuple[int, list[str], Path]:
    """`make bench-gpu` with an interpreter that notes what it is given, and fails at one word."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$PYTHONPATH $@" >> {log}\ncase "$*" in *"{fails}"*) exit 1;; esac\n'
    )
    python.chmod(0o755)
    checkout = tmp_path / "checkout"
    given = ["bench-gpu", f"PY={python}", f"CHECKOUT={checkout}", "RESULTS=x.jsonl"]
    around = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-C", str(ROOT), *given], env=around, capture_output=True, text=True, check=False
    )
    assert log.exists(), done.stderr
    return done.returncode, log.read_text().splitlines(), checkout


@pytest.mark.skipif(which("make") is None, reason="no make")
@pytest.mark.parametrize("fails", ["nothing", "pytest", "bench sampling"])
def test_one_command_measures_all_without_installing(tmp_path: Path, fails: str) -> None:
    code, ran, checkout = make(tmp_path, fails)
    assert bool(code) == (fails != "nothing")
    assert [line.split()[0] for line in ran] == 7 * [str(checkout)]
    commands = [line.partition(" -m ")[2] for line in ran]
    benches = ("sampling", "decode", "decode", "batch", "step", "serve")
    starts = [f"dlm bench {name} " for name in benches]
    for start, command in zip([*starts, "pytest "], commands, strict=True):
        assert command.startswith(start)
    assert all("--device cuda --out x.jsonl" in each for each in commands[:-1])
    sizes = " ".join(f"--batch-size {n}" for n in (1, 4, 16, 32))
    assert f"--cache dual {sizes} " in commands[1]
    assert (checkout / "dlm").resolve() == ROOT / "dlm"
    assert list(checkout.iterdir()) == [checkout / "dlm"]
