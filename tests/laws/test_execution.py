"""Steps whose shapes stay, recorded and played again, decode what plain ones do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import dlm
from dlm.canvas import Canvas
from dlm.decoders import DECODERS
from dlm.execution import Execution, StepFunction
from dlm.host import Mailbox
from dlm.measure import Places
from dlm.models.model import Model
from dlm.progress import Due, Progress
from dlm.runtime import Loop, Outcome
from dlm.traits import Traits
from dlm.tree import mapped, tensors

Toy = Callable[..., Model]

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]
WAITS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
"""What makes the host wait for a GPU, beside lists of what a mask marks."""


class Trace:
    """What a CUDA graph is, on a CPU: the operations of one step, played on other values.

    Whatever the host decided while it was recorded is decided for good.
    """

    plays = 0

    def __init__(self, step: StepFunction, canvas: Canvas, progress: Progress, due: Due) -> None:
        given = (canvas, progress)

        def flat(*leaves: Tensor) -> list[Tensor]:
            source = iter(leaves)
            self.outcome = step(*mapped(lambda _: next(source), given), due)
            return list(tensors(self.outcome))

        self.graph = make_fx(flat)(*tensors(given))

    def __call__(self, canvas: Canvas, progress: Progress) -> Outcome:
        Trace.plays += 1
        made = iter(self.graph(*tensors((canvas, progress))))
        return mapped(lambda _: next(made), self.outcome)


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


@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_shapes_that_stay_change_nothing(golden: Model, decoder: str, cache: str) -> None:
    options = {"decoder": decoder, "cache": cache, "stop_at_eos": cache != "dual"}
    same(run(golden, Execution(static=True), **options), run(golden, Execution(), **options))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_recorded_step_decides_as_it_goes(toy: Toy, decoder: str) -> None:
    record(toy(5), decoder=decoder, stop_at_eos=False, gen_length=7)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("decoder", ["threshold", "klass"])
def test_a_step_with_a_cache_can_be_recorded(golden: Model, decoder: str, cache: str) -> None:
    record(golden, decoder=decoder, cache=cache, stop_at_eos=False, gen_length=8, temperature=0.0)


def record(model: Model, **options: Any) -> None:
    before = Trace.plays
    recorded = run(model, Execution(static=True, record=Trace), **options)
    assert Trace.plays > before
    same(recorded, run(model, Execution(), **options))


@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_the_host_waits_for_one_report_a_step(
    golden: Model, decoder: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a step nothing is read: no item, no tolist, no truth of a tensor."""
    steps, reads = 0, 0
    step, read = Loop.step, Mailbox.read

    def watched(self: Loop, *given: Any) -> Outcome:
        nonlocal steps
        steps += 1
        with forbidden():
            return step(self, *given)

    def counted(self: Mailbox, report: Tensor) -> list[int]:
        nonlocal reads
        reads += 1
        return read(self, report)

    monkeypatch.delattr(Places, "where")
    monkeypatch.setattr(Loop, "step", watched)
    monkeypatch.setattr(Mailbox, "read", counted)
    options = {"decoder": decoder, "cache": cache, "stop_at_eos": True}
    out = run(golden, Execution(static=True), return_trajectory=False, **options)
    assert steps == reads == max(out.forwards)


@contextmanager
def forbidden() -> Iterator[None]:
    """Fail on anything that would make the host wait."""

    def refuse(name: str) -> Callable[..., Any]:
        def wait(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"the host waits for the device: Tensor.{name}")

        return wait

    with pytest.MonkeyPatch.context() as patch:
        for name in WAITS:
            patch.setattr(Tensor, name, refuse(name))
        yield


def test_what_is_forbidden_is_noticed() -> None:
    one = torch.ones(1)
    for name in WAITS:
        with forbidden(), pytest.raises(AssertionError, match=name):
            getattr(one, name)()
    with forbidden(), pytest.raises(AssertionError, match="__bool__"):
        assert one


def test_a_step_that_cannot_be_recorded_runs_plainly_and_says_so(golden: Model) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        out = run(golden, Execution(static=True, record=refuse))
    same(out, run(golden, Execution()))
