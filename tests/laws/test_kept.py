"""How much is kept of generations, for how long, and of which networks."""

import gc
import weakref
from collections import UserList
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders.base import Stateless
from dlm.execution import LANES, STRIDE, Execution, state_of
from dlm.execution import lanes_of as lanes_of_network
from dlm.job import generation_job
from dlm.lanes import Lane, Lanes, constant
from dlm.models.model import Model
from dlm.progress import Scope
from dlm.recording import Recording
from dlm.settings import Settings
from dlm.tree import equal, kinds
from dlm.types import Decision, StepView

Traced = Callable[..., Execution]

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]


def run(
    model: Model, execution: Execution, rows: list[list[int]] = ROWS, **options: Any
) -> list[list[int]]:
    usual: dict[str, Any] = {"gen_length": 10, "block_length": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        return dlm.generate(model, rows, **{**usual, **options}).tokens


def check(model: Model, execution: Execution, *given: Any, **options: Any) -> None:
    expected = run(model, Execution(), *given, **options)
    assert run(model, execution, *given, **options) == expected


def lanes_of(execution: Execution) -> Lanes:
    assert execution.lanes is not None
    return execution.lanes


def test_what_a_network_rests_on(model: Model) -> None:
    network = model.network
    first = state_of(network)
    assert first == state_of(network)
    with torch.inference_mode():
        assert state_of(network) != first
    torch.backends.cuda.enable_math_sdp(False)
    try:
        assert state_of(network) != first
    finally:
        torch.backends.cuda.enable_math_sdp(True)
    assert state_of(network) == first
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert state_of(network) is None
    hook.remove()
    network.model.layers[0].self_attn.scaling *= 2
    second = state_of(network)
    assert second not in (first, None)
    del network.model.layers[0].mlp.act_fn
    network.model.layers[0].mlp.act_fn = torch.nn.GELU()  # where the other one lay, perhaps
    assert state_of(network) not in (first, second, None)
    network.model.norm = Norm()
    assert state_of(network) is None


class Norm(torch.nn.RMSNorm):
    """Of a package that nothing is known of."""

    def __init__(self) -> None:
        super().__init__(64)


@dataclass(frozen=True)
class Counting(Stateless):
    """A decoder whose state is none before its first forward."""

    table: Any = None
    paper = "none"

    def step(self, state: Any, view: StepView) -> tuple[Any, Decision]:
        first = view.masked.int().cumsum(-1) == 1
        made = view.step if state is None else state + 1
        return made, Decision(view.masked & first)


class Undecorated(Counting):
    pass


def test_a_state_may_be_of_another_kind_at_first(golden: Model, execution: Execution) -> None:
    for _ in range(3):
        check(golden, execution, decoder=Counting())


def test_which_decoders_are_told_apart(golden: Model, execution: Execution) -> None:
    one, two = torch.ones(2), torch.zeros(2)
    assert constant(Counting(one))
    changing = (Undecorated(), Counting(lambda: one), object(), Counting((1, [1])), Counting({}))
    assert not any(map(constant, changing))
    assert all(map(constant, (Counting((1, "a", None)), Counting(Counting(one)))))
    assert equal(Counting([one, {"a": one}]), Counting([one.clone(), {"a": one.clone()}]))
    others = ([one, {"a": two}], [one], (one, {"a": one}), [one, {"b": one}], int, None)
    assert not any(equal(Counting([one, {"a": one}]), Counting(other)) for other in others)
    for _ in range(2):
        check(golden, execution, decoder=Counting([one, two]))


def test_options_may_be_changed_between_generations(golden: Model, execution: Execution) -> None:
    """In place, too, whatever kind of a list they are."""
    banned = UserList([0])
    for _ in range(5):
        check(golden, execution, suppress_tokens=banned)
        banned.append(run(golden, Execution(), suppress_tokens=banned)[0][0])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("steps", [None, 12])
@pytest.mark.parametrize("decoder", ["threshold", "remdm"])
def test_other_numbers_of_blocks_share_recordings(
    golden: Model, execution: Execution, decoding: Any, decoder: str, steps: int | None
) -> None:
    """Up to the next power of two, blocks that a decoder bounds by their blanks included."""
    options: dict[str, Any] = {**decoding(decoder), "cache": "dual", "steps": steps}

    def recorded(*lengths: int) -> int:
        for length in lengths:
            check(golden, execution, ROWS[:1], gen_length=length, **options)
        return sum(lane.recordings for lane in lanes_of(execution).unused)

    first = recorded(20, 20)
    assert 0 < first == recorded(15, 18)
    assert len(lanes_of(execution).unused[0].kept) == 1
    assert recorded(21, 21) > first  # of 5 blocks


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_no_more_is_kept_than_allowed(golden: Model, traced: Traced, cache: str) -> None:
    execution = traced()
    run(golden, execution, cache=cache)
    (lane,) = lanes_of(execution).unused
    (work,) = lane.kept
    whole = work.size
    if cache == "dual":  # 2 layers of keys and values, 3 rows of 64 columns and one more
        width = golden.network.config.hidden_size
        layers = golden.network.config.num_hidden_layers
        assert work.loop.size == layers * 2 * 3 * (STRIDE + 1) * width * 4
    execution = traced(most=int(2.5 * whole))
    for block_length in (5, 4, 3, 2):
        run(golden, execution, block_length=block_length, cache=cache)
    (lane,) = lanes_of(execution).unused
    assert len(lane.kept) == 2
    assert lane.size <= 2.5 * whole
    execution = traced(most=0)
    check(golden, execution, cache=cache)
    assert not lanes_of(execution).unused[0].kept


def test_generations_at_the_same_time_keep_no_more_together(golden: Model, traced: Traced) -> None:
    """What those in use keep no other may."""
    whole = lanes_of(traced())
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Execution, "of", lambda model: Execution(static=True, lanes=whole))
        options = [Settings(gen_length=10, block_length=n, cache="dual") for n in (5, 5, 4, 3)]
        jobs = [generation_job(golden, ROWS, each) for each in options]
        steps: list[Any] = [job.steps() for job in jobs]
        first, *others = steps
        next(first)
        (lane,) = whole.budget.used
        size = lane.size
        whole.budget.most = 2 * size
        for each in others:
            next(each)
        first.close()
        (lane,) = whole.unused
        assert not lane.kept  # the three others have taken it all by now
        for each in others:
            each.close()
    assert not whole.budget.used
    assert sorted(lane.size for lane in whole.unused) == [0, 0, size, size]


@pytest.fixture
def frozen() -> Iterator[None]:
    """What was there before the test is not looked at by collections, which would take seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
def test_a_stream_may_be_collected_at_any_time(
    golden: Model, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while another generation asks what those in use keep."""
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    left: list[Any] = []
    for _ in range(2):
        stream = dlm.stream(golden, ROWS[0], gen_length=10)
        next(stream)
        left.append([stream, left])  # a circle
    size = Lane.size.fget  # type: ignore[attr-defined]

    def collect(lane: Lane) -> int:
        gc.collect()
        found: int = size(lane)
        return found

    del stream
    left = []
    monkeypatch.setattr(Lane, "size", property(collect))
    check(golden, execution)
    assert not lanes_of(execution).budget.used


def test_a_network_on_another_device_has_other_lanes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams and memory are those of a device."""
    monkeypatch.setattr("dlm.execution.memory_of", lambda device: 1 << 30)
    first = lanes_of_network(model)
    assert first is lanes_of_network(model)
    monkeypatch.setattr(Model, "device", torch.device("meta"))
    other = lanes_of_network(model)
    assert first.record().device == torch.device("cpu")  # type: ignore[attr-defined]
    assert other.record().device == torch.device("meta")  # type: ignore[attr-defined]


def test_what_does_not_come_back_is_dropped(
    golden: Model, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first: recordings of some lengths, and then those of a block length."""
    monkeypatch.setattr("dlm.recording.MOST", 3)
    monkeypatch.setattr("dlm.lanes.MOST", 2)
    for length in (1, 2, 3, 4, 2, 5):
        check(golden, execution, [[5] * length, [6]], temperature=0.0)
    (lane,) = lanes_of(execution).unused
    (work,) = lane.kept
    # What packs the rows is read again, and has no other owner than the recording.
    made = [each for each in work.steps.made.values() if isinstance(each, Recording)]
    assert [each.plan.packing is not None for each in made] == [True] * 3
    state = kinds(None)
    assert [*work.steps.made] == [
        ((Scope.ROW, (n + 10, 11), 5, True, 64), state) for n in (4, 2, 5)
    ]
    for block_length in (4, 3):
        check(golden, execution, block_length=block_length)
    assert work not in lane.kept
    assert len(lane.kept) == 2
    assert all(work.steps.recordings for work in lane.kept)
    monkeypatch.setattr("dlm.lanes.RECORDINGS", lane.recordings - 1)
    lanes_of(execution).give(lane)
    assert len(lane.kept) == 1


@pytest.mark.parametrize("how", ["deleted", "released"])
def test_what_is_kept_goes_with_the_network(golden_folder: Path, traced: Traced, how: str) -> None:
    """Without the garbage collector, which does not count the memory of a GPU."""
    model = dlm.load(golden_folder, dtype="float32")
    execution = traced()
    LANES[model.network] = lanes_of(execution)
    for _ in range(2):
        run(model, execution, cache="dual")
    (work,) = lanes_of(execution).unused[0].kept
    made = [each for each in work.steps.made.values() if isinstance(each, Recording)]
    kept = [weakref.ref(each) for each in (work.loop, work.steps, *made)]
    assert len(kept) == 4
    del execution, work, made
    gc.disable()
    try:
        if how == "released":
            dlm.release(model)
        else:
            network = weakref.ref(model.network)
            del model
            assert network() is None
        assert not any(each() for each in kept)
    finally:
        gc.enable()
