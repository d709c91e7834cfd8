"""That kernels of 8-bit integers compile, and what to; `triton_int8_cases.py` has answers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.kernels import fused_experts, fused_int8, fused_layers
from dlm.kernels.int8 import WIDEST, Matrix

compiler = pytest.importorskip("triton.compiler")

ARCHITECTURES = (80, 90, 100)
KINDS = ("round_kernel", "int8_product_kernel", "int8_gated_kernel", "int8_grouped_kernel")


@pytest.fixture
def recorders(recorded_launches: Any) -> dict[str, Any]:
    from dlm.kernels import triton_int8

    return {name: recorded_launches(triton_int8, name) for name in KINDS}


def matrix(rows: int, columns: int, *, biased: bool = False) -> Matrix:
    bias = torch.zeros(rows, dtype=torch.bfloat16) if biased else None
    return Matrix(torch.zeros(rows, columns, dtype=torch.int8), torch.zeros(rows), bias)


def layer(tokens: int, width: int, narrow: int, inner: int, *, biased: bool = False) -> None:
    """The launches of one layer."""
    x = torch.zeros(tokens, width, dtype=torch.bfloat16)
    parts = [matrix(rows, width, biased=biased) for rows in (width, narrow, narrow)]
    fused_int8.product(x, parts)
    fused_int8.product(x, [matrix(width, width)])
    made = fused_int8.gated(x, matrix(inner, width), matrix(inner, width))
    fused_int8.product(made, [matrix(width, inner)])
    # Of LLaDA2's experts, of which there are 256 with 512 columns inside.
    by = fused_experts.tiles(torch.arange(8).expand(tokens, -1), 16)
    x = torch.zeros(tokens, 2048, dtype=x.dtype)
    for tokens_of, rows, each in ((x, 1024, 8), (torch.zeros(len(by.order), 512), 2048, 0)):
        weight = torch.zeros(16, rows, tokens_of.shape[1], dtype=torch.int8)
        fused_experts.grouped(tokens_of, weight, torch.zeros(16, rows), by, each)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("tokens", "width", "narrow", "inner", "biased"),
    [
        (32, 4096, 4096, 12288, False),
        (33, 3584, 512, 18944, True),
        (512, 4096, 1024, 12288, False),
        (512, 3584, 512, 18944, True),
    ],
    ids=["llada", "dream", "llada, many rows", "dream, many rows"],
)
def test_kernels_compile(
    recorders: dict[str, Any],
    tokens: int,
    width: int,
    narrow: int,
    inner: int,
    biased: bool,
    architecture: int,
) -> None:
    """And fit: what a program may take of shared memory is 163 KiB on the least of them."""
    layer(tokens, width, narrow, inner, biased=biased)
    for name, recorder in recorders.items():
        assert recorder.launches, name
        for one in recorder.launches.values():
            built = one.compile(architecture)
            assert built.asm["cubin"]
            assert built.metadata.shared <= 163 * 1024, name
            assert ".f64" not in built.asm["ptx"]


def test_what_only_machine_code_shows(recorders: dict[str, Any]) -> None:
    """Weights go straight to shared memory, 16 bytes at a time, and integers to wide units."""
    layer(32, 4096, 4096, 12288)
    for name in KINDS[1:]:
        for one in recorders[name].launches.values():
            text = one.compile(90).asm["ptx"]
            assert "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8" in text
            assert "cp.async.cg.shared.global" in text
            assert "cp.async.ca" not in text
            assert "ld.global.b8" not in text


@pytest.mark.parametrize("tokens", [32, 512])
def test_what_is_added_was_rounded_before(
    recorders: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    """Biases and parts: contracted to one operation they would be other bits. No stack."""
    layer(tokens, 3584, 512, 18944, biased=True)
    binary, tool = tmp_path / "product.cubin", Path(compiler.__file__).parent.parent
    tool = tool / "backends" / "nvidia" / "bin" / "cuobjdump"
    for one in recorders["int8_product_kernel"].launches.values():
        built = one.compile(90)
        assert "fma." not in built.asm["ptx"]
        assert one.given["EACH"] == (1 if tokens <= fused_layers.FEW else one.given["PARTS"])
        binary.write_bytes(built.asm["cubin"])
        used = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True)
        assert " STACK:0 " in used.stdout, used


def test_many_tokens_are_cut_and_few_are_not(recorders: dict[str, Any]) -> None:
    for tokens, each, rows in ((1, 16, 64), (64, 64, 64), (65, 128, 128), (512, 128, 128)):
        recorders["int8_gated_kernel"].launches.clear()
        x = torch.zeros(tokens, 256, dtype=torch.bfloat16)
        fused_int8.gated(x, matrix(384, 256), matrix(384, 256))
        (one,) = recorders["int8_gated_kernel"].launches.values()
        assert (one.given["TOKENS"], one.given["ROWS"]) == (each, rows)


@pytest.mark.parametrize(
    ("weight", "fit"),
    [
        (torch.zeros(128, 192, dtype=torch.int8), True),
        (torch.zeros(128, 192, dtype=torch.bfloat16), False),
        (torch.zeros(96, 192, dtype=torch.int8), False),
        (torch.zeros(128, 96, dtype=torch.int8), False),
        (torch.zeros(192, 128, dtype=torch.int8).t(), False),
        (torch.zeros(64, 1, dtype=torch.int8).expand(64, 64 * (WIDEST // 64)), False),
        (None, False),
    ],
)
def test_what_fits(weight: torch.Tensor | None, fit: bool) -> None:
    assert fused_int8.fits()
    assert fused_int8.fits(weight) == fit
    assert fused_int8.fits(torch.zeros(64, 64, dtype=torch.int8), weight) == fit
