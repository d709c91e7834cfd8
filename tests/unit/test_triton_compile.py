"""Every fused kernel compiles to machine code for three GPU generations. No GPU is needed.

The interpreter takes Python that the compiler does not, so that either check alone is too few.
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.kernels import STATISTICS, Bonus, NoiseKey
from dlm.kernels.call import Call
from dlm.kernels.statistics import by_kernels

compiler = pytest.importorskip("triton.compiler")

ARCHITECTURES = (80, 90, 100)
LAUNCHES: tuple[dict[str, Any], ...] = (
    {"dtype": torch.bfloat16},
    {"dtype": torch.bfloat16, "temperature": 1.0, "wanted": STATISTICS, "suppressed": True},
    {"dtype": torch.float16, "temperature": 0.5, "wanted": {"confidence"}, "step": 2},
    {"dtype": torch.float32, "wanted": {"margin", "entropy"}, "bonus": True, "scale": True},
    {
        "dtype": torch.bfloat16, "temperature": 0.5, "wanted": STATISTICS, "suppressed": True,
        "scale": True, "scale_statistics": False, "bonus": True, "vocabulary": 151_936,
    },
    {"dtype": torch.bfloat16, "temperature": 1.0, "wanted": STATISTICS, "top_k": 50, "top_p": 0.9},
    {
        "dtype": torch.float16, "temperature": 0.5, "wanted": STATISTICS, "law": "sampling",
        "scale": True, "suppressed": True, "top_p": 0.9, "min_p": 0.1,
    },
    {
        "dtype": torch.float32, "wanted": {"margin", "token_probability"}, "law": "sampling",
        "bonus": True, "step": 2, "top_k": 50,
    },
)  # fmt: skip
"""Every flag of the kernels is on in one and off in another."""


@pytest.fixture
def recorders(recorded_launches: Any) -> dict[str, Any]:
    from dlm.kernels import triton_cut, triton_race, triton_scan

    kernels = (
        (triton_scan, "scan_kernel"),
        (triton_race, "draw_kernel"),
        (triton_cut, "search_kernel"),
        (triton_cut, "last_kernel"),
    )
    return {name: recorded_launches(module, name) for module, name in kernels}


def launch(options: dict[str, Any]) -> None:
    """One call with the logits of two rows."""
    vocabulary, step = options.get("vocabulary", 126_464), options.get("step", 1)
    logits = torch.zeros(2, step * vocabulary, dtype=options["dtype"])[:, ::step]
    index, some = torch.arange(2), torch.zeros(vocabulary, dtype=torch.bool)
    by_kernels(
        Call(
            logits,
            options.get("wanted", ()),
            temperature=options.get("temperature", 0.0),
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            min_p=options.get("min_p"),
            law=options.get("law", "model"),
            suppressed=some if "suppressed" in options else None,
            tokens=index,
            key=NoiseKey(0, index, index, index),
            scale=torch.ones(2) if "scale" in options else None,
            scale_statistics=options.get("scale_statistics", True),
            bonus=Bonus(index[:, None], torch.ones(2, 1)) if "bonus" in options else None,
        )
    )


@pytest.mark.one_in(8)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("number", range(len(LAUNCHES)))
def test_kernels_compile(recorders: dict[str, Any], number: int, architecture: int) -> None:
    launch(LAUNCHES[number])
    for name, recorder in recorders.items():
        for one in recorder.launches.values():
            built = one.compile(architecture)
            assert built.asm["cubin"]
            # It runs at a 32nd of the speed of float32, or less. A cut takes one product.
            lines = [line for line in built.asm["ptx"].splitlines() if ".f64" in line]
            assert len(lines) <= (6 if name in ("search_kernel", "last_kernel") else 0), lines


def test_filters_launch_both_searches(recorders: dict[str, Any]) -> None:
    """So that the compilations above are of all there is."""
    launch(LAUNCHES[5])
    assert [one.given["WEIGH"] for one in recorders["search_kernel"].launches.values()] == [0, 1]
    assert [len(recorder.launches) for recorder in recorders.values()] == [2, 1, 2, 1]


def test_what_only_machine_code_shows(recorders: dict[str, Any]) -> None:
    """Loads of 16 bytes and sums that stay in a warp, on which the bandwidth rests, and NaN."""
    launch(LAUNCHES[1])
    (scan,) = recorders["scan_kernel"].launches.values()
    lines = scan.compile(90).asm["ptx"].splitlines()
    assert sum("max.NaN.f32" in line for line in lines) == 32, "a NaN that the clamp would hide"
    assert sum("ld.global.v4.b32" in line for line in lines) == 4
    assert sum("shfl.sync" in line for line in lines) <= 15 + 2  # and 2 for the mask
    assert sum("bar.sync" in line for line in lines) <= 1 + 3  # likewise


def test_a_search_stays_in_registers(recorders: dict[str, Any], tmp_path: Path) -> None:
    """Loads of 16 bytes, and no stack: 15 thresholds are compared with every token of a lane."""
    launch(LAUNCHES[5])
    binary, tool = tmp_path / "search.cubin", Path(compiler.__file__).parent.parent
    tool = tool / "backends" / "nvidia" / "bin" / "cuobjdump"
    for one in recorders["search_kernel"].launches.values():
        built = one.compile(90)
        assert built.asm["ptx"].count("ld.global.v4.b32") == 2
        binary.write_bytes(built.asm["cubin"])
        used = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True)
        assert " STACK:0 " in used.stdout, used
