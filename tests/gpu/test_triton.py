"""The fused kernels on a GPU: the cases of the interpreter, full size, few launches, no wait.

Shapes: N rows, V vocabulary.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dlm.kernels import (
    STATISTICS,
    NoiseKey,
    TokenStatistics,
    fused,
    selfcheck,
    statistics,
    token_statistics,
)
from dlm.kernels.call import Call
from dlm.kernels.filters import filter_cut
from dlm.kernels.fused import FusedLaw, find_cut
from dlm.kernels.statistics import by_kernels, by_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FOLDER = Path(__file__).parent.parent / "unit"
FIELDS = ("sampled", "maximum", *sorted(STATISTICS))
PARTS = ("noise_", "canvas_", "cut_", "temperature_", "", "attention_", "layer_", "int8_")
CASES = tuple(FOLDER / f"triton_{name}cases.py" for name in PARTS)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_k": 5000, "top_p": 0.9},
    {"min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.01},
)


def field(result: TokenStatistics, name: str) -> Tensor:
    value: Tensor | None = getattr(result, name)
    assert value is not None
    return value


def call_of(
    num_rows: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16, **filters: Any
) -> dict[str, Any]:
    """A call that wants all there is, on the GPU."""
    source = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(num_rows, vocabulary, generator=source, device="cuda").mul_(3)
    index = torch.arange(num_rows, device="cuda")
    return {
        "logits": logits.to(dtype),
        "wanted": STATISTICS,
        "temperature": 0.7,
        "key": NoiseKey(torch.full_like(index, 1), index, index, index),
        "tokens": index,
        "suppressed": torch.arange(vocabulary, device="cuda") >= vocabulary - 100,
        "law": "sampling" if filters else "model",
        **filters,
    }


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_the_cases_pass(cases: Path) -> None:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_") and name != "TRITON_INTERPRET"
    }
    plugins = ("-p", "no:xdist", "-p", "no:benchmark")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins, cases],
        env=kept | {"DLM_TEST_DEVICE": "cuda"},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_self_check_passes(dtype: torch.dtype) -> None:
    """What a process does before its first call. All other tests rest on it."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert selfcheck.difference(device, dtype, by_kernels, by_torch) is None


def test_a_call_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the public function, and torch where the check has failed."""
    call = call_of(2, 5000)
    found = token_statistics(**call)
    seen: list[int] = []

    def counted(call: Call) -> TokenStatistics:
        seen.append(1)
        return by_kernels(call)

    monkeypatch.setattr(statistics, "by_kernels", counted)
    again = token_statistics(**call)
    assert seen == [1]
    monkeypatch.setattr(selfcheck, "_FOUND", {(call["logits"].device, torch.bfloat16): False})
    plain = token_statistics(**call)
    assert seen == [1]
    assert torch.equal(found.sampled, again.sampled)
    assert torch.equal(found.sampled, plain.sampled)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "vocabulary"), [(1, 126_464), (32, 126_464), (256, 151_936)])
def test_full_size_is_what_torch_says(
    num_rows: int, vocabulary: int, dtype: torch.dtype, filters: dict[str, Any]
) -> None:
    """A cut of top-p may move by tokens of 1e-6 of the mass, which these tolerances allow."""
    call = call_of(num_rows, vocabulary, dtype, **filters)
    assert fused.covers(Call(**call))
    found, plain = token_statistics(**call), by_torch(Call(**call))
    assert torch.equal(found.sampled, plain.sampled)
    for name in ("maximum", *STATISTICS):
        torch.testing.assert_close(field(found, name), field(plain, name), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES[::2])
@pytest.mark.parametrize("top_k", [None, 50])
def test_full_size_min_p_is_exact(dtype: torch.dtype, top_k: int | None) -> None:
    logits = call_of(32, 126_464, dtype)["logits"]
    each = torch.full((32,), 0.7, device=logits.device)
    found = find_cut(Call(logits, (), top_k=top_k, min_p=0.01), FusedLaw(each, None))
    expected = filter_cut(logits.float(), 0.7, top_k, None, 0.01)
    assert torch.equal(found[:, :1].contiguous().view(torch.float32), expected.value)
    assert torch.equal(found[:, 1:], expected.token)


@pytest.mark.parametrize("dtype", DTYPES[::2])
@pytest.mark.parametrize("top_k", [None, 1, 50, 5000, 126_000])
def test_full_size_top_k_is_exact(top_k: int | None, dtype: torch.dtype) -> None:
    """And top-p where all sums are: a row of equals."""
    logits = call_of(32, 126_464, dtype)["logits"]
    if top_k is None:
        logits, top_k, top_p = torch.zeros_like(logits), 100_000, 0.37
    else:
        top_p = None
    found = find_cut(Call(logits, (), top_k=top_k, top_p=top_p), FusedLaw(None, None))
    expected = filter_cut(logits.float(), 1.0, top_k, top_p)
    assert torch.equal(found[:, :1].contiguous().view(torch.float32), expected.value)
    assert torch.equal(found[:, 1:], expected.token)


@pytest.mark.parametrize("filters", FILTERS)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(filters: dict[str, Any]) -> None:
    call = call_of(67, 126_464, **filters)
    whole = token_statistics(**call)
    for row in (0, 1, 42, 66):
        one = slice(row, row + 1)
        key = call["key"]
        alone = NoiseKey(1, key.row[one], key.position[one], key.draw[one])
        part = token_statistics(
            **call | {"logits": call["logits"][one], "tokens": call["tokens"][one], "key": alone}
        )
        for name in ("sampled", "maximum", *STATISTICS):
            assert torch.equal(field(whole, name)[one], field(part, name)), name


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, None])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_call_waits_for_the_device(
    scaled: bool, temperature: float | None, filters: dict[str, Any], no_waits: Any
) -> None:
    call = call_of(33, 5000, **filters)
    each = torch.linspace(0.3, 1.7, 33, device="cuda")
    call |= {"temperature": each if temperature is None else temperature}
    call |= {"scale": torch.ones(33, device="cuda") if scaled else None}
    token_statistics(**call)  # the self check, and the compiler
    torch.cuda.synchronize()
    with no_waits():
        token_statistics(**call)


@pytest.mark.parametrize(
    ("filters", "cutting", "share"),
    [
        (FILTERS[0], [], 0.02),
        (FILTERS[1], ["search_kernel"] * 4 + ["last_kernel"], 0.05),
        (FILTERS[3], ["scan_kernel"] + ["search_kernel"] * 8 + ["last_kernel"], 0.05),
    ],
)
def test_a_call_is_few_launches_and_little_memory(
    filters: dict[str, Any], cutting: list[str], share: float
) -> None:
    call = call_of(64, 126_464, **filters)
    token_statistics(**call)  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        token_statistics(**call)
        torch.cuda.synchronize()
    kernels = [event.name for event in profiler.events() if "kernel" in event.name.lower()]
    launched = [name for name in kernels if not name.startswith(("cuda", "cu"))]
    assert "elementwise" in launched.pop(0), "which writes T of every row"
    assert launched == [*cutting, "scan_kernel", "draw_kernel"]
    logits = call["logits"]
    assert torch.cuda.max_memory_allocated() - before < share * logits.numel() * 2


@pytest.mark.parametrize("path", ["kernels", "kernels, filtered", "torch", "torch, filtered"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_graph_replays_with_other_logits(temperature: float, path: str) -> None:
    """Captured once, replayed with logits and noise that came later, it equals a plain call."""
    first, second = call_of(33, 5000), call_of(33, 5000)
    for call in (first, second):
        call["temperature"] = temperature
    second["logits"] = second["logits"].flip(1).roll(7, 0).contiguous()
    second["key"] = NoiseKey(1, *(part + 50 for part in (second["key"].row,) * 3))
    if path.endswith("filtered"):
        filters = {"top_p": 0.8, "top_k": 90, "min_p": 0.01}
        first, second = first | filters, second | filters
    public = path.startswith("kernels")
    answer = token_statistics if public else lambda **call: by_torch(Call(**call))
    expected = [answer(**call) for call in (first, second)]  # also compiles
    kept = [{name: field(one, name).clone() for name in FIELDS} for one in expected]
    inputs = first | {"logits": first["logits"].clone(), "key": cloned(first["key"])}
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        recorded = answer(**inputs)
    for call, truth in zip((second, first), reversed(kept), strict=True):
        inputs["logits"].copy_(call["logits"])
        for name in ("row", "position", "draw"):
            getattr(inputs["key"], name).copy_(getattr(call["key"], name))
        graph.replay()
        for name in FIELDS:
            assert torch.equal(field(recorded, name), truth[name]), name
    assert not torch.equal(kept[0]["sampled"], kept[1]["sampled"])


def test_a_capture_before_the_check_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the question open for the next call."""
    call = call_of(3, 3000)
    expected = by_torch(Call(**call))
    found: dict[Any, bool] = {}
    monkeypatch.setattr(selfcheck, "_FOUND", found)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        recorded = token_statistics(**call)
    assert not found
    graph.replay()
    for name in FIELDS:
        assert torch.equal(field(recorded, name), field(expected, name)), name
    token_statistics(**call)
    assert list(found.values()) == [True]


def cloned(key: NoiseKey) -> NoiseKey:
    """The same in tensors of its own."""
    return NoiseKey(key.seed, key.row.clone(), key.position.clone(), key.draw.clone())
