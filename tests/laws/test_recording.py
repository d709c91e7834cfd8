"""What records CUDA graphs, with a CPU for the GPU: streams, memory, threads and failures."""

import gc
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import dlm
from dlm import recording
from dlm.execution import Execution
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.recording import GraphRecorder, Pool, pools
from dlm.runtime import Loop
from dlm.settings import Settings
from dlm.tree import kinds

Toy = Callable[..., Model]
Traced = Callable[..., Execution]

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
RECORDER = partial(GraphRecorder, torch.device("cpu"))


def run(model: Model, execution: Execution, **options: Any) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 11, "block_length": 4, "temperature": 0.8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        return dlm.generate(model, ROWS, return_order=True, **{**usual, **options})


def same(one: dlm.Generation, other: dlm.Generation) -> None:
    assert (one.tokens, one.forwards, one.order) == (other.tokens, other.forwards, other.order)


def test_recordings_serve_any_temperature(golden: Model, traced: Traced, trace: Any) -> None:
    """That tokens are drawn at; where the likeliest are taken, steps are others."""
    execution = traced()
    for temperature in (1.0, 1.0, 0.1, 3.0):
        before = trace.plays
        found = run(golden, execution, temperature=temperature)
        same(found, run(golden, Execution(), temperature=temperature))
    assert trace.plays - before == max(found.forwards)
    before = trace.plays
    found = run(golden, execution, temperature=0.0)
    same(found, run(golden, Execution(), temperature=0.0))
    assert trace.plays - before < max(found.forwards)


def test_a_step_like_the_last_one_is_played_without_a_look_at_its_shape(
    golden: Model, traced: Traced, trace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device waits for what the host does between two steps."""
    looked: list[object] = []

    def noted(state: Any) -> tuple[str, ...]:
        looked.append(state)
        return kinds(state)

    monkeypatch.setattr("dlm.recording.kinds", noted)
    execution, options = traced(), {"gen_length": 24, "block_length": 12, "cache": "dual"}
    found = [run(golden, execution, **options) for _ in range(3)]
    for each in found:
        same(each, run(golden, Execution(), **options))
    (steps,) = {each.forwards[0] for each in found}
    before, plays = len(looked), trace.plays
    run(golden, execution, **options)
    assert trace.plays - plays == steps
    assert len(looked) - before <= 6  # a refresh and the windows behind it, of two blocks


def check_waits(model: Model, traced: Traced, cuda: Any) -> None:
    """That memory taken over on another stream is waited for first."""
    cuda.current = type(cuda.current)("another", cuda.log)
    cuda.log.clear()
    run(model, traced(RECORDER))
    assert cuda.log[0] == "another waits for the end of caller"


def test_generations_take_over_the_memory_of_recordings(
    toy: Toy, traced: Traced, cuda: Any
) -> None:
    """Of a network that nothing else is kept of, one after the other; by turns they must not."""
    model = toy(5)
    for _ in range(2):
        run(model, traced(RECORDER), gen_length=6)
    pool, *others = cuda.pools
    assert others
    assert set(others) == {pool}
    of_pool = cuda.streams[0]
    for noted in (cuda.pools, cuda.streams):
        noted.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: traced(RECORDER))
        jobs = [generation_job(model, ROWS, Settings(gen_length=6)) for _ in range(2)]
    steps = [job.steps() for job in jobs]
    for _ in range(3):
        for each in steps:
            next(each)
    first, keeper, second = cuda.pools
    assert first is pool
    assert keeper is second is not first
    # What libraries allocate for a stream lies in the pool of all that is recorded on it.
    for one, stream in zip(cuda.pools, cuda.streams, strict=True):
        assert (stream is of_pool) == (one is pool)


def test_recordings_on_a_gpu_decode_what_plain_steps_do(
    golden: Model, traced: Traced, cuda: Any
) -> None:
    execution = traced(RECORDER)
    for _ in range(2):
        same(run(golden, execution, cache="dual"), run(golden, Execution(), cache="dual"))
    assert len(cuda.pools) > 2
    waits = ["capture waits for caller", "caller waits for capture"]
    assert cuda.log[: 2 * len(cuda.pools)] == waits * len(cuda.pools)
    assert cuda.log[2 * len(cuda.pools) :] == ["caller waits for the end of caller"]


def test_a_network_that_cannot_be_recorded_is_not_tried_again(
    golden: Model, traced: Traced, cuda: Any
) -> None:
    cuda.refused = RuntimeError("operation not permitted when stream is capturing")
    execution = traced(RECORDER)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        run(golden, execution)
    assert execution.lanes is not None
    assert execution.lanes.failed
    keeper, failed, well = cuda.pools
    assert keeper is failed is not well  # torch has to see a recording end well
    assert not pools(torch.device("cpu"))


def test_memory_of_a_recording_that_was_broken_off_is_not_used_again(
    golden: Model, traced: Traced, cuda: Any
) -> None:
    cuda.refused = KeyboardInterrupt()
    execution = traced(RECORDER)
    with pytest.raises(KeyboardInterrupt):
        run(golden, execution)
    gc.collect()
    assert not pools(torch.device("cpu"))
    broken = cuda.pools[1]
    same(run(golden, execution), run(golden, Execution()))
    assert broken not in cuda.pools[2:]


def test_what_failed_keeps_no_memory(
    golden: Model, traced: Traced, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for as long as the generation, with recordings that are played no more."""
    execution: Execution = traced(RECORDER)
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    settings = Settings(gen_length=30, block_length=15, cache="dual", stop_at_eos=False)
    held = []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step in generation_job(golden, ROWS, settings).steps():
            if step.number == 10:
                held.append(len(recording.POOLS))
                cuda.refused, cuda.always = RuntimeError("no more"), True
            elif step.number == 20:
                cuda.refused = None  # with what its traceback holds
                gc.collect()
                held.append(len(recording.POOLS))
    assert held == [1, 0]
    gc.collect()
    assert not pools(torch.device("cpu"))


def test_what_a_generation_asked_for_before_it_broke_is_waited_for(
    golden: Model, traced: Traced, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution: Execution = traced(RECORDER)
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    steps: Any = generation_job(golden, ROWS, Settings(gen_length=11)).steps()
    with torch.inference_mode():
        for _ in range(4):
            next(steps)
        with pytest.raises(ValueError, match="broke"):
            steps.throw(ValueError("broke"))
    del steps
    gc.collect()
    check_waits(golden, traced, cuda)


def test_no_two_pools_have_one_stream(golden: Model, traced: Traced, cuda: Any) -> None:
    """Of the three that this device has one is the caller's, and torch hands them out in turn."""
    device = torch.device("cpu")
    cuda.current = cuda.few[1]
    held = [Pool(device), Pool(device)]
    assert {id(pool.stream) for pool in held} == {id(cuda.few[0]), id(cuda.few[2])}
    execution = traced(RECORDER)
    with pytest.warns(RuntimeWarning, match="all 32 streams of cpu have recordings") as told:
        run(golden, execution)
    assert len(told) == 1  # in a generation
    held.pop()
    run(golden, execution)  # once one of those is over
    assert execution.lanes is not None
    assert execution.lanes.unused[0].recordings
    execution.lanes.unused.clear()
    pools(device).clear()
    assert Pool(device).stream is not held[0].stream


def test_memory_that_is_taken_over_is_waited_for(golden: Model, traced: Traced, cuda: Any) -> None:
    """Its last recordings may have been played on another stream."""
    run(golden, traced(RECORDER))
    check_waits(golden, traced, cuda)


def test_steps_that_were_not_recorded_are_waited_for(
    golden: Model, traced: Traced, cuda: Any
) -> None:
    """On another stream the same cache is written to."""
    execution = traced(RECORDER)
    options: dict[str, Any] = {"steps": 1, "block_length": None, "cache": "dual"}
    run(golden, execution, **options)
    assert not cuda.pools
    cuda.current = type(cuda.current)("another", cuda.log)
    cuda.log.clear()
    run(golden, execution, **options)
    assert cuda.log[0] == "another waits for the end of caller"


def test_every_thread_runs_a_step_plainly_before_it_is_recorded(
    golden: Model, traced: Traced, traces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries make what they need for each thread at their first call, not in a recording.

    Threads that come one after the other have one number.
    """
    said: list[str] = []
    mine = threading.local()

    class Watching(traces):  # type: ignore[misc]
        def __call__(self, *given: Any) -> Any:
            said.append("recorded")
            assert mine.ready
            return super().__call__(*given)

    step = Loop.step

    def watched(self: Loop, *given: Any) -> Any:
        mine.ready = True
        said.append("run")
        return step(self, *given)

    monkeypatch.setattr(Loop, "step", watched)
    options: dict[str, Any] = {"block_length": None, "steps": 1}
    expected = run(golden, Execution(), **options)
    execution = traced(Watching)
    said.clear()

    def decode() -> None:
        same(run(golden, execution, **options), expected)

    for _ in range(3):
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    decode()
    assert said == ["run"] * 4
    decode()
    assert said[4:] == ["recorded", "run"]  # the double runs it while it is recorded
    decode()
    assert len(said) == 6


def test_memory_that_is_short_is_taken_from_what_is_kept(
    golden: Model, execution: Execution, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept are two lanes, and one of them has another workspace than the one in use.

    The step is made once more kernel by kernel: a recording would take more, and what a first step
    compiles and allocates must not lie in one.
    """
    lanes = execution.lanes
    assert lanes is not None
    options: dict[str, Any] = {"cache": "dual", "gen_length": 11}
    expected = run(golden, Execution(), **options)
    step, short = Loop.step, 0

    def scarce(self: Loop, *given: Any) -> Any:
        nonlocal short
        if short:
            short -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *given)

    monkeypatch.setattr(Loop, "step", scarce)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Execution, "of", lambda model: execution)
        steps = generation_job(golden, ROWS, Settings(**options)).steps()
        next(steps)
        run(golden, execution)
        del steps
    run(golden, execution, **options)
    assert sorted(len(lane.kept) for lane in lanes.unused) == [1, 2]
    for work in lanes.unused[-1].kept:
        work.steps.made.clear()  # so that a step runs plainly
    pools(torch.device("cpu")).append(object())  # type: ignore[arg-type]
    short = 1
    same(run(golden, execution, **options), expected)
    assert [len(lane.kept) for lane in lanes.unused] == [1]
    assert not pools(torch.device("cpu"))
    short = 2
    with pytest.raises(torch.OutOfMemoryError):
        run(golden, execution, block_length=5, **options)
    short = 1
    with pytest.raises(torch.OutOfMemoryError):
        run(golden, Execution(), **options)


def test_a_recording_that_memory_is_short_for_is_made_once_there_is_more(
    golden: Model, traced: Traced, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a later step: this one is made kernel by kernel."""
    cuda.refused = torch.OutOfMemoryError("CUDA out of memory")
    execution: Execution = traced(RECORDER)
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    settings = Settings(gen_length=11, block_length=4, cache="dual", temperature=0.8)
    with torch.inference_mode():
        steps = generation_job(golden, ROWS, settings).steps()
        made = [len(cuda.pools) for _ in steps]
    assert made[made.index(2) + 1] > 2
    assert execution.lanes is not None
    assert not execution.lanes.failed
    same(run(golden, execution, cache="dual"), run(golden, Execution(), cache="dual"))


def test_a_recording_is_made_where_a_step_fits_but_not_two(
    golden: Model, traced: Traced, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What plain steps took stays theirs while one is recorded, and the other way round."""
    room, need = 15, 10
    plain = pooled = 0
    capturing = False
    begin, end, step = (cuda.graph.capture_begin, cuda.graph.capture_end, Loop.step)

    def began(self: Any, *given: Any, **more: Any) -> None:
        nonlocal capturing
        begin(self, *given, **more)
        capturing = True

    def ended(self: Any) -> None:
        nonlocal capturing
        end(self)
        capturing = False

    def scarce(self: Loop, *given: Any) -> Any:
        nonlocal plain, pooled
        taken = [max(plain, need), pooled] if not capturing else [plain, max(pooled, need)]
        if sum(taken) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        plain, pooled = taken
        return step(self, *given)

    def empty() -> None:
        nonlocal plain, pooled
        plain, pooled = 0, pooled if recording.POOLS else 0

    monkeypatch.setattr(cuda.graph, "capture_begin", began)
    monkeypatch.setattr(cuda.graph, "capture_end", ended)
    monkeypatch.setattr(Loop, "step", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    execution = traced(RECORDER)
    options: dict[str, Any] = {"block_length": None, "cache": "none"}
    found = run(golden, execution, **options)
    assert execution.lanes is not None
    (lane,) = execution.lanes.unused
    assert lane.recordings == 1
    assert (plain, pooled) == (0, need)
    # Others' first step takes the room of it, and they are recorded in turn.
    run(golden, execution, gen_length=9, **options)
    assert (plain, pooled) == (0, need)
    # So does the first step of another shape of the same rows.
    cached = run(golden, execution, cache="dual")
    assert not execution.lanes.failed
    monkeypatch.undo()
    same(found, run(golden, Execution(), **options))
    same(cached, run(golden, Execution(), cache="dual"))


def test_a_recording_that_memory_stays_short_for_is_given_up(
    golden: Model, traced: Traced, cuda: Any
) -> None:
    cuda.refused, cuda.always = torch.OutOfMemoryError("CUDA out of memory"), True
    execution = traced(RECORDER)
    options: dict[str, Any] = {"cache": "dual"}
    with pytest.warns(RuntimeWarning, match="CUDA out of memory"):
        same(run(golden, execution, **options), run(golden, Execution(), **options))
    assert execution.lanes is not None
    assert execution.lanes.failed
    assert len(cuda.pools) == 4  # the keeper's, two tries, and one that has to end well
