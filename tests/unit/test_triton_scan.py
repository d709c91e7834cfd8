"""Which calls the fused kernels answer, and that they answer as torch does, interpreted."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.kernels import fused, token_statistics
from dlm.kernels.call import Call
from dlm.kernels.tiles import TiledLogits

FOLDER = Path(__file__).parent


QUICK, SLOW = "not slow", "slow"
PARTS = (
    ("attention_", "int8_", "layer_", "noise_", "temperature_"),
    ("", "cut_", "canvas_"),
)  # to start a process takes seconds
CASES: list[Any] = [(parts, QUICK) for parts in PARTS]
CASES += [pytest.param(parts, SLOW, marks=pytest.mark.slow) for parts in PARTS]


@pytest.mark.long
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("parts", "which"), CASES)
def test_the_cases_pass_under_the_interpreter(parts: tuple[str, ...], which: str) -> None:
    """In a process of their own: here triton may be imported already, to compile."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", which
    files = [FOLDER / f"triton_{part}cases.py" for part in parts]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        # With several threads numpy's products have other bits in every shape.
        env=kept | {"TRITON_INTERPRET": "1", "DLM_TEST_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("options", "covered"),
    [
        ({}, True),
        ({"top_k": 7}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.1}, True),
        ({"top": 1}, False),
        ({"dtype": torch.bfloat16}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float64}, False),
        ({"rows": 0}, False),
        ({"vocabulary": 2**22, "top_k": 7}, True),
        ({"vocabulary": 2**22 + 1, "top_k": 7}, False),
        ({"vocabulary": 2**22 + 1, "min_p": 0}, True),
        ({"vocabulary": 2**22 + 1}, True),
    ],
)
def test_calls_that_are_covered(
    options: dict[str, Any], covered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = options.get("rows", 2), options.get("vocabulary", 8)
    logits = torch.zeros(1, 1, dtype=options.get("dtype", torch.float32)).expand(shape)
    shaping = "rows", "vocabulary", "dtype"
    rest = {name: value for name, value in options.items() if name not in shaping}
    call = Call(logits, (), **rest)
    assert not fused.covers(call), "a CPU takes the torch path"
    monkeypatch.setattr(fused, "ON_CPU", True)
    assert fused.covers(call) == covered


def test_a_cpu_reads_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[slice] = []
    read = TiledLogits.read

    def counted(self: TiledLogits, rows: slice, *more: Any) -> None:
        seen.append(rows)
        read(self, rows, *more)

    monkeypatch.setattr(TiledLogits, "read", counted)
    token_statistics(torch.zeros(2, 8), ("confidence",))
    assert seen == [slice(0, 2)]


def test_no_kernel_is_loaded_before_it_is_used() -> None:
    """Triton costs half a second that a CPU has no use for."""
    code = "import sys, dlm.kernels; print('dlm.kernels.triton_scan' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1, -(2**63)])
def test_words_become_int32(seed: int) -> None:
    for word in (seed, seed >> 32):
        found = fused._signed(word)
        assert -(2**31) <= found < 2**31
        assert found % 2**32 == word % 2**32
