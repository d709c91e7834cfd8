"""Which calls the kernels beside the network take, and that they compile."""

from typing import Any

import pytest
import torch

from dlm.kernels import canvas, canvas_check, fused_canvas, fused_ranking, ranking
from dlm.kernels.canvas import Rows, Stops

pytest.importorskip("triton")

ARCHITECTURES = (80, 90, 100)
KERNELS = ("write", "stop", "locate", "stretch", "look", "judge")
RANKS = ("descending", "rank", "top", "at_least")


@pytest.fixture
def recorders(recorded_launches: Any) -> dict[str, Any]:
    from dlm.kernels import triton_canvas, triton_ranking

    found = {name: recorded_launches(triton_canvas, f"{name}_kernel") for name in KERNELS}
    return found | {"rank": recorded_launches(triton_ranking, "rank_kernel")}


def step(count: int, length: int, width: int, *, rich: bool) -> None:
    """All launches of a step, of a decoder that only commits or of one that does all there is."""
    whole, flags = torch.zeros(count, length, dtype=torch.int64), torch.zeros(count, length) > 0
    row, mark = whole[:, 0].clone(), flags[:, 0].clone()
    rows = Rows(whole, flags, row, row, row, whole)
    window, masks = whole[:, :width].clone(), flags[:, :width].clone()
    changes = masks, *((masks, masks) if rich else (None, None))
    fused_canvas.write(whole, window, window, changes, 7)
    for settled in ("block", "row") if rich else ("token",):
        ids = torch.zeros(2, dtype=torch.int64)
        fused_canvas.stop(rows, row, mark, 7, width, Stops(ids, 3, settled))
    fused_canvas.stop(rows, row, mark, 7, width, Stops(None, 3, "token"))
    fused_canvas.locate(rows, row, mark, 7, width, width, rich)
    fused_canvas.stretch(whole, flags, row, row, width, length, 1 + rich)
    fused_canvas.look(masks, masks, row, row)
    fused_canvas.judge(changes, masks, masks, True)
    scores = window.double() if rich else window.float()
    fused_ranking.descending(scores, masks)
    fused_ranking.rank(scores, masks)
    fused_ranking.top(scores, masks, row if rich else 3)
    fused_ranking.at_least(masks, scores, masks, row)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("count", "length", "width", "rich"), [(1, 320, 32, False), (33, 3001, 1001, True)]
)
def test_kernels_compile(
    recorders: dict[str, Any], count: int, length: int, width: int, rich: bool, architecture: int
) -> None:
    step(count, length, width, rich=rich)
    for name, recorder in recorders.items():
        assert recorder.launches, name
        for one in recorder.launches.values():
            built = one.compile(architecture)
            assert built.asm["cubin"]
            assert name == "rank" or ".f64" not in built.asm["ptx"]


def test_no_size_makes_another_kernel(recorders: dict[str, Any]) -> None:
    """One that is met first while a CUDA graph is recorded could not be loaded."""
    from dlm.kernels import triton_canvas, triton_ranking

    kernels = [getattr(triton_canvas, f"{name}_kernel").kernel for name in KERNELS]
    for kernel in (*kernels, triton_ranking.rank_kernel.kernel):
        for parameter in kernel.params:
            assert parameter.is_constexpr or parameter.do_not_specialize, parameter.name
    step(1, 320, 32, rich=False)
    kinds = {name: set(recorder.launches) for name, recorder in recorders.items()}
    step(3, 417, 25, rich=False)
    assert {name: set(recorder.launches) for name, recorder in recorders.items()} == kinds


def test_what_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 9)
    assert not fused_canvas.covers(x)
    monkeypatch.setattr(fused_canvas, "ON_CPU", True)
    assert fused_canvas.covers(x)
    assert fused_canvas.covers(x, fused_canvas.PLACES)
    assert not fused_canvas.covers(x, fused_canvas.PLACES + 1)
    assert not fused_canvas.covers(x[:0])


@pytest.mark.parametrize(
    ("dtype", "width", "odd", "covered"),
    [
        (torch.float32, 9, None, True),
        (torch.float64, 1024, None, True),
        (torch.float32, 1025, None, False),
        (torch.bfloat16, 9, None, False),
        (torch.int64, 9, None, False),
        (torch.float32, 9, "int32", False),
        (torch.float32, 9, "one count", False),
        (torch.float32, 9, "one mask", False),
        (torch.float32, 9, "no bool", False),
        (torch.float32, 9, "one row", False),
    ],
)
def test_which_ranks_are_covered(
    dtype: torch.dtype, width: int, odd: str | None, covered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are left to torch, which has its own answer or error."""
    monkeypatch.setattr(fused_canvas, "ON_CPU", True)
    scores = torch.zeros(2, width, dtype=dtype)
    mask, count = torch.zeros(2, width, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    if odd == "int32":
        count = count.int()
    elif odd == "one count":
        count = count[:1]
    elif odd == "one mask":
        mask = mask[:1]
    elif odd == "no bool":
        mask = mask.long()
    elif odd == "one row":
        scores, mask = scores[0], mask[0]
    assert fused_ranking.covers(scores, mask, mask, count=count) == covered


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no device had been asked."""
    monkeypatch.setattr(canvas_check, "_FOUND", {})


def in_place_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts functions of torch in the place of the kernels; which of them were called."""
    called: list[str] = []

    def noted(call: Any) -> Any:
        def run(*given: Any) -> Any:
            called.append(call.__name__)
            return call(*given)

        return run

    for fused, plain, names in (
        (fused_canvas, canvas, KERNELS),
        (fused_ranking, ranking, RANKS),
    ):
        for name in names:
            monkeypatch.setattr(fused, name, noted(getattr(plain, name)))
    return called


def test_a_device_is_asked_once(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    called = in_place_of(monkeypatch)
    assert canvas_check.passes(torch.device("cpu"))
    assert [*dict.fromkeys(called)] == [*KERNELS, *RANKS]
    called.clear()
    assert canvas_check.passes(torch.device("cpu"))
    assert not called


@pytest.mark.parametrize("name", [*KERNELS, *RANKS])
def test_a_wrong_answer_leaves_all_to_torch(
    name: str, unknown: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of(monkeypatch)
    module, plain = (fused_ranking, ranking) if name in RANKS else (fused_canvas, canvas)
    right = getattr(plain, name)

    def wrong(*given: Any) -> Any:
        made = right(*given)
        if isinstance(made, torch.Tensor):
            return ~made
        return *made[:-1], ~made[-1]

    monkeypatch.setattr(module, name, wrong)
    with pytest.warns(RuntimeWarning, match=f"self check on cpu.*another answer of {name}$"):
        assert not canvas_check.passes(torch.device("cpu"))
    assert not canvas_check.passes(torch.device("cpu"))


def test_what_cannot_be_compiled_is_told(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused_canvas, "write", broken)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler"):
        assert not canvas_check.passes(torch.device("cpu"))


def test_short_memory_says_nothing(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fused_canvas, "write", short)
    with pytest.raises(torch.OutOfMemoryError):
        canvas_check.passes(torch.device("cpu"))
    assert canvas_check._FOUND == {}
