"""No kernel answers a call before it has answered as torch does, and none that fails ends a run."""

import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from dlm.kernels import TokenStatistics, fused, selfcheck, statistics, token_statistics
from dlm.kernels.call import Call
from dlm.kernels.statistics import by_torch

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> dict[Any, bool]:
    """The cache of a new process."""
    found: dict[Any, bool] = {}
    monkeypatch.setattr(selfcheck, "_FOUND", found)
    return found


def other_sample(call: Call) -> TokenStatistics:
    right = by_torch(call)
    return replace(right, sampled=right.sampled.roll(1))


def other_entropy(call: Call) -> TokenStatistics:
    right = by_torch(call)
    return right if right.entropy is None else replace(right, entropy=right.entropy + 1e-3)


def nan_confidence(call: Call) -> TokenStatistics:
    right = by_torch(call)
    assert right.confidence is not None
    return replace(right, confidence=right.confidence * torch.nan)


def missing_margin(call: Call) -> TokenStatistics:
    return replace(by_torch(call), margin=None)


def wrong_when_drawn(call: Call) -> TokenStatistics:
    return other_sample(call) if call.draws else by_torch(call)


def wrong_when_filtered(call: Call) -> TokenStatistics:
    right = by_torch(call)
    return replace(right, entropy=None) if call.cuts else right


def no_compiler(call: Call) -> TokenStatistics:
    raise RuntimeError("ptxas died")


FAILURES = (
    (other_sample, "another sampled at temperature 0.0"),
    (other_entropy, "another entropy at temperature 0.0"),
    (nan_confidence, "another confidence at temperature 0.0"),
    (missing_margin, "another margin at temperature 0.0"),
    (wrong_when_drawn, "another sampled at temperature 0.7"),
    (
        wrong_when_filtered,
        r"another entropy at temperature \[0.5, 0.625, 0.75, 0.875, 1.0, 1.125\]",
    ),
    (no_compiler, "RuntimeError: ptxas died"),
)


@pytest.mark.parametrize(("broken", "said"), FAILURES, ids=[one.__name__ for one, _ in FAILURES])
def test_a_kernel_that_fails_is_named_once_and_left_out(broken: Any, said: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"self check on cpu in torch.float32.*: {said}"):
        assert not selfcheck.passes(CPU, torch.float32, broken, by_torch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not selfcheck.passes(CPU, torch.float32, broken, by_torch), "asked once only"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_errs_by_rounding_passes(dtype: torch.dtype) -> None:
    def rounded(call: Call) -> TokenStatistics:
        right = by_torch(call)
        assert right.confidence is not None
        return replace(right, confidence=right.confidence * (1 + 1e-6))

    assert selfcheck.passes(CPU, dtype, rounded, by_torch)


def test_memory_that_is_short_says_nothing_of_the_kernels(forgotten: dict[Any, bool]) -> None:
    def short(call: Call) -> TokenStatistics:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        selfcheck.passes(CPU, torch.float32, short, by_torch)
    assert not forgotten


def test_every_device_and_dtype_is_asked_once(forgotten: dict[Any, bool]) -> None:
    asked: list[torch.dtype] = []

    def counted(call: Call) -> TokenStatistics:
        asked.append(call.dtype)
        return by_torch(call)

    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16):
            assert selfcheck.passes(CPU, dtype, counted, by_torch)
    assert asked == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert forgotten == {(CPU, torch.float32): True, (CPU, torch.bfloat16): True}


@pytest.mark.parametrize("known", [True, False, None])
def test_a_capture_asks_nothing(
    known: bool | None, forgotten: dict[Any, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    if known is not None:
        forgotten[device, torch.float32] = known
    before = dict(forgotten)
    assert selfcheck.passes(device, torch.float32, no_compiler, by_torch) == (known is True)
    assert forgotten == before


def test_a_failed_check_leaves_torch_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ON_CPU", True)
    monkeypatch.setattr(statistics, "by_kernels", other_sample)
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    with pytest.warns(RuntimeWarning, match="torch takes their place"):
        assert token_statistics(logits, ()).sampled.tolist() == [1, 0]
    assert token_statistics(logits, ()).sampled.tolist() == [1, 0]


def test_a_passed_check_lets_the_kernels_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(call: Call) -> TokenStatistics:
        sizes.append(call.logits.shape[1])
        return by_torch(call)

    monkeypatch.setattr(fused, "ON_CPU", True)
    monkeypatch.setattr(statistics, "by_kernels", counted)
    for _ in range(2):
        token_statistics(torch.zeros(2, 3), ())
    token_statistics(torch.zeros(2, 3), (), top=1)  # not covered
    assert sizes == [selfcheck.VOCABULARY] * 3 + [3, 3]


def test_the_check_reaches_all_that_the_kernels_adjust() -> None:
    plain, drawn, filtered = selfcheck.calls(CPU, torch.float32)
    assert drawn.key is not None
    assert drawn.bonus is not None
    changed: dict[str, Any] = {
        "temperature": 0.8, "suppressed": None, "scale": None, "bonus": None,
        "scale_statistics": True, "key": replace(drawn.key, seed=-8),
    }  # fmt: skip
    expected = by_torch(drawn)
    for name, value in changed.items():
        assert selfcheck._wrong_field(by_torch(replace(drawn, **{name: value})), expected), name
    assert selfcheck._wrong_field(by_torch(replace(plain, suppressed=None)), by_torch(plain))
    expected = by_torch(filtered)
    assert isinstance(filtered.temperature, torch.Tensor)
    changed = {"top_k": None, "top_p": None, "law": "model", "scale_statistics": True}
    changed["temperature"] = filtered.temperature[:1].expand(selfcheck.ROWS)
    for name, value in changed.items():
        assert selfcheck._wrong_field(by_torch(replace(filtered, **{name: value})), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_rounding_moves_the_cuts_of_the_check(dtype: torch.dtype) -> None:
    *_, call = selfcheck.calls(CPU, dtype)
    assert call.mask is not None
    assert call.scale is not None
    values = call.logits.double().masked_fill(call.mask, -torch.inf)
    assert isinstance(call.temperature, torch.Tensor)
    for scale in (call.scale, 1.0):  # of the drawn law, and of the scored one
        speed = (scale / call.temperature)[:, None]
        ranked = (values * speed).softmax(1).sort(dim=1, descending=True).values
        kept = ranked[:, : call.top_k]
        share = kept.cumsum(1) / kept.sum(1, keepdim=True)
        assert (share - selfcheck.SHARE).abs().min() > 1e-3


def test_a_wait_that_is_forbidden_is_no_failure_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is forbidden again afterwards, whatever the check came to."""
    modes: list[Any] = [2]  # as `get_sync_debug_mode` tells of "error"
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with suppress(KeyError), selfcheck.may_wait(GPU):
        assert modes[-1] == "default"
        raise KeyError
    assert modes == [2, "default", 2]


def test_the_mode_is_left_alone_where_waits_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch warns of whoever sets it first, which a user may have made an error."""
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: pytest.fail("set"))
    with selfcheck.may_wait(GPU):
        pass
