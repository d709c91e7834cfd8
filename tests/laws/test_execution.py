"""Steps whose shapes stay, recorded and played again, decode what plain ones do."""

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.execution import Execution, lanes_of, loops_over_experts
from dlm.models.experts import Experts
from dlm.models.int8 import Int8Experts
from dlm.models.model import Model
from dlm.progress import Scope
from dlm.runtime import Loop, Outcome
from dlm.traits import Traits

Toy = Callable[..., Model]
Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]
Forbidden = Callable[[], AbstractContextManager[None]]

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]


def run(model: Model, execution: Execution, **options: Any) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 11, "block_length": 4, "seed": 3, "temperature": 0.8}
    usual |= {"return_trajectory": True, "return_order": True, "row_keys": [40, 41, 42]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        return dlm.generate(model, ROWS, **{**usual, **options})


def same(one: dlm.Generation, other: dlm.Generation) -> None:
    for name in ("tokens", "decoded", "forwards", "query_tokens", "order"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.trajectory is not None
    assert other.trajectory is not None
    for a, b in zip(one.trajectory, other.trajectory, strict=True):
        assert torch.equal(a.canvases, b.canvases)
        assert a.times == pytest.approx(b.times)
        for kind in ("commits", "remasks", "edits"):
            here, there = getattr(a, kind), getattr(b, kind)
            assert [change[:3] for change in here] == [change[:3] for change in there]
            sure = [change.confidence for change in there]
            assert [c.confidence for c in here] == pytest.approx(sure, rel=1e-4, nan_ok=True)


@pytest.fixture
def played(trace: Any, traced: Traced) -> Callable[..., None]:
    """Asserts that a generation whose steps are recorded is the plain one."""

    def check(model: Model, **options: Any) -> None:
        before = trace.plays
        recorded = run(model, traced(), **options)
        assert trace.plays > before
        same(recorded, run(model, Execution(), **options))

    return check


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_shapes_that_stay_change_nothing(
    golden: Model, decoding: Decoding, decoder: str, cache: str
) -> None:
    options = {**decoding(decoder), "cache": cache, "stop_at_eos": cache != "dual"}
    same(run(golden, Execution(static=True), **options), run(golden, Execution(), **options))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_recorded_step_decides_as_it_goes(
    toy: Toy, decoder: str, played: Callable[..., None]
) -> None:
    played(toy(5), decoder=decoder, stop_at_eos=False, gen_length=8)


@pytest.mark.parametrize("stop_at_eos", [False, True])
@pytest.mark.parametrize(
    "facts",
    [
        *({}, {"block_size": 3}, {"shift": True}),
        *({"block_size": 5, "causal": True}, {"block_size": 5, "anchored": True}),
        {"block_size": 5, "causal": True, "reordered": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("decoder", "cache"), [("threshold", "prefix"), ("klass", "dual"), ("d2f", "dual")]
)
def test_a_step_with_a_cache_can_be_recorded(
    golden: Model,
    decoder: str,
    cache: str,
    facts: dict[str, Any],
    stop_at_eos: bool,
    played: Callable[..., None],
) -> None:
    """Rows part company: one is done while the others go on, and blocks end at other forwards."""
    if decoder == "d2f" and "causal" in facts and "reordered" not in facts:
        pytest.skip("several blocks at a time are refused")
    model = Model(golden.network, None, replace(golden.spec, **facts))
    if stop_at_eos:  # whatever comes first to row 0 ends it
        first = run(model, Execution(), decoder=decoder, cache=cache, gen_length=3).tokens[0]
        model = Model(golden.network, None, replace(model.spec, stop_ids=tuple(set(first))))
    options = {"cache": cache, "decoder_options": {"threshold": 0.02}, "temperature": 0.0}
    played(model, decoder=decoder, stop_at_eos=stop_at_eos, gen_length=14, **options)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_padding_behind_an_end_can_be_recorded(
    golden: Model, cache: str, played: Callable[..., None]
) -> None:
    model = Model(golden.network, None, replace(golden.spec, stop_ids=tuple(range(0, 512, 16))))
    played(model, decoder="low_confidence", cache=cache, gen_length=14, pad_after_eos=True)


def test_rows_of_which_some_are_done_start_blocks_together(golden: Model) -> None:
    """A row that is done does not make the others' forward a mixed one."""
    shapes: list[Any] = []
    step = Loop.step

    def watched(self: Loop, canvas: Any, progress: Any, plan: Any) -> Outcome:
        shapes.append(plan.shape(canvas.tokens.shape[1]))
        return step(self, canvas, progress, plan)

    rows = [[5, 6, 511], *([i, *[511] * 12] for i in (7, 8, 9))]
    options: dict[str, Any] = {"cache": "dual", "block_length": 4, "decoder": "left_to_right"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: Execution(static=True))
        patch.setattr(Loop, "step", watched)
        dlm.infill(golden, rows, **options)
    whole = (Scope.ROW, (3, 13, 13, 13), 4, True, 13)
    assert shapes == [whole, *[(Scope.WINDOW, True, 0, 4, 0, (0, 0), True, 0, 13)] * 3] * 3


def test_recorded_canvases_have_few_lengths(traced: Traced) -> None:
    """But none that the network cannot place."""
    lengths = [(1, 512), (64, 512), (65, 512), (500, 512), (66, 70)]
    assert [traced().columns(*each) for each in lengths] == [64, 64, 128, 512, 70]
    assert [Execution(static=True).columns(*each) for each in lengths] == [n for n, _ in lengths]


def test_nothing_outlives_a_generation_of_which_nothing_is_kept(
    toy: Toy, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the garbage collector, which does not count the memory of a GPU."""
    loops: list[weakref.ref[Loop]] = []
    start = Loop.start

    def watched(self: Loop, *given: Any) -> Any:
        loops.append(weakref.ref(self))
        return start(self, *given)

    options = {"gen_length": 6, "return_trajectory": False}
    run(toy(5), traced(), **options)  # torch keeps a frame of the first operation that is noted
    monkeypatch.setattr(Loop, "start", watched)
    gc.disable()
    try:
        run(toy(5), traced(), **options)
        assert [each() for each in loops] == [None]
    finally:
        gc.enable()


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_the_host_waits_for_one_report_a_step(
    golden: Model,
    decoding: Decoding,
    decoder: str,
    cache: str,
    waiting: Counter[str],
) -> None:
    """Within a step nothing is read: no item, no tolist, no truth of a tensor."""
    options = {**decoding(decoder), "cache": cache, "stop_at_eos": True}
    out = run(golden, Execution(static=True), return_trajectory=False, **options)
    assert waiting["steps"] == waiting["reads"] == max(out.forwards)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("decoder", ["dream", "block_refinement", "low_confidence"])
def test_a_filter_sends_no_number(
    golden: Model, decoder: str, temperature: float, waiting: Counter[str]
) -> None:
    """At temperature 0, too, where scores of the filtered law are those of a number, T = 1."""
    options: dict[str, Any] = {"decoder": decoder, "temperature": temperature, "min_p": 0.1}
    run(golden, Execution(static=True), return_trajectory=False, **options)
    assert waiting["steps"]


def test_what_is_forbidden_is_noticed(forbidden: Forbidden, waits: tuple[str, ...]) -> None:
    one = torch.ones(1)
    some, whole = one > 0, one.long()
    for name in waits:
        with forbidden(), pytest.raises(AssertionError, match=name):
            getattr(one, name)()
    with forbidden(), pytest.raises(AssertionError, match="__bool__"):
        assert one
    calls: list[Callable[[], Any]] = [
        lambda: one[some],
        lambda: one.clone().index_put_((some,), one),
        lambda: one.masked_select(some),
        lambda: one.unique(),
        lambda: one.unique_consecutive(),
        lambda: one.nonzero(),
        lambda: torch.where(some),
        lambda: whole.bincount(),
        lambda: one.repeat_interleave(whole),
        lambda: torch.equal(one, one),
        lambda: torch.tensor([1, 2]),
    ]
    for call in calls:
        with forbidden(), pytest.raises(AssertionError, match="waits for the device: aten"):
            call()
    for name in ("tensor", "as_tensor"):
        with (
            forbidden(),
            pytest.raises(AssertionError, match=f"waits for the device: torch.{name}"),
        ):
            getattr(torch, name)(1.0, device="cpu")


def test_a_recording_makes_no_mask_of_its_own(
    golden: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early transformers 5 masks the queries where a CUDA graph is captured and none was given."""

    def decode() -> list[list[int]]:
        return dlm.generate(golden, ROWS[:1], gen_length=8, block_length=4, cache="dual").tokens

    expected = decode()
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    assert decode() == expected


def test_a_step_that_cannot_be_recorded_runs_plainly(
    golden: Model, traced: Traced, traces: Any
) -> None:
    tries = 0

    class Refusing(traces):  # type: ignore[misc]
        def __call__(self, *_: Any) -> None:
            nonlocal tries
            tries += 1
            self.failed = True

    execution = traced(Refusing)
    same(run(golden, execution), run(golden, Execution()))
    assert tries == 1
    assert execution.lanes is not None
    assert execution.lanes.failed


def test_who_is_recorded_on_a_gpu(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(device=torch.device("cuda", 0))

    def model(**changes: Any) -> Model:
        network = copy.copy(golden.network)
        network.config = copy.copy(network.config)
        network.config._attn_implementation = changes.pop("attention", "sdpa")
        network.config._experts_implementation = "eager"  # as transformers notes without experts
        if changes.pop("experts", False):
            network.modules = lambda: iter([experts()])
        network.parameters = lambda recurse=True: [gpu]
        return Model(network, None, replace(golden.spec, **changes))

    def records(asked: Model) -> bool:
        made = Execution.of(asked)
        assert made.static
        return made.lanes is not None

    memory = SimpleNamespace(total_memory=1 << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: memory)
    monkeypatch.setattr(Model, "device", gpu.device)
    once = model()
    assert records(once)
    lanes_of(once).failed = True
    assert not records(once)
    assert records(model())
    refused = ({"attention": "flash_attention_2"}, {"experts": True}, {"caches": False})
    assert not any(records(model(**changes)) for changes in refused)


def experts() -> Experts:
    sizes = {"num_experts": 2, "hidden_size": 64, "moe_intermediate_size": 64}
    return Experts(SimpleNamespace(**sizes, hidden_act="silu"))


def test_experts_that_are_looped_over_are_not_recorded() -> None:
    def loops(chosen: str, dtype: torch.dtype, module: torch.nn.Module) -> bool:
        config = SimpleNamespace(_experts_implementation=chosen)
        network = SimpleNamespace(config=config, dtype=dtype, modules=lambda: [module])
        return loops_over_experts(network)

    assert loops("eager", torch.bfloat16, experts())
    assert loops("grouped_mm", torch.float64, experts())
    assert not loops("grouped_mm", torch.bfloat16, experts())
    for module in (torch.nn.Linear(2, 2), Int8Experts(experts())):
        assert not loops("eager", torch.float64, module)
