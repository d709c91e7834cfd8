"""What benchmarks ask of a GPU. Skipped without one."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dlm.bench.events import GRAPH, PLAIN, Timed, gpu_of
from dlm.cli import app

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

REFUSED = """
import torch
from dlm.bench.events import Timed, gpu_of
gpu = gpu_of(torch.device("cuda"))
ones = torch.ones(8, device="cuda")
timed = Timed.of(gpu, [lambda: ones.sum().item()])
assert timed.seconds() > 0
print(timed.by)
"""


def lines(*args: str) -> list[dict[str, Any]]:
    found = CliRunner().invoke(app, ["bench", *args, "--device=cuda", "--json"], prog_name="dlm")
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_a_recorded_call_is_done_again_and_timed() -> None:
    device = torch.device("cuda")
    gpu = gpu_of(device)
    assert gpu is not None
    total = torch.zeros(1, device=device)
    timed = Timed.of(gpu, [lambda: total.add_(1), lambda: total.add_(1)])
    assert timed.by == GRAPH
    before = float(total)
    assert 1e-7 < timed.seconds() < 1e-3
    assert float(total) == before + 2 * timed.plays


def test_what_waits_for_the_device_is_timed_plainly() -> None:
    """In a process of its own: a recording that fails leaves the allocator in its state."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(PLAIN), done.stderr


def test_sampling_is_timed_on_the_device() -> None:
    found = lines("sampling", "--rows=4", "--rows=8", "--positions=8", "--repeats=1")
    assert [row["case"]["rows"] for row in found] == 4 * [4, 8]
    for row in found:
        by = {name: value for name, value in row["found"].items() if "timed by" in name}
        assert by == {"timed by": GRAPH, "copy timed by": GRAPH}
        assert 0 < row["found"]["share of copy bandwidth"] < 1.5


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_steps_are_replayed_and_told_apart(cache: str) -> None:
    args = ["--shape=tiny", "--gen-length=32", "--block-length=16", "--repeats=1"]
    (row,) = lines("decode", *args, f"--cache={cache}", "--batch-size=2")
    part = "whole rows" if cache == "none" else "window"
    assert row["found"][f"steps plain, {part}"] == row["found"][f"steps recorded, {part}"] == 1
    assert row["found"][f"steps replayed, {part}"] == 30 - 2 * (cache == "dual")
    assert row["found"][f"ms per step replayed, {part}"] > 0
    if cache == "none":
        assert row["found"]["network run by"].endswith("CUDA graphs for 32 forwards")
        assert "dlm / network" in row["ratios"]
