"""Which layers the kernels take, and that they compile; `triton_layer_cases.py` has answers."""

from typing import Any

import pytest
import torch

from dlm.kernels import fused_layers
from dlm.kernels.layers import Heads, Norms, Slots

pytest.importorskip("triton")

ARCHITECTURES = (90, 100)  # with fewer registers and less shared memory there is no launch
OF_A_WINDOW = ("attend_kernel", "combine_kernel")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def recorders(recorded_launches: Any) -> dict[str, Any]:
    from dlm.kernels import triton_attention, triton_layers

    kernels = (
        (triton_layers, "product_kernel"),
        (triton_layers, "gated_kernel"),
        (triton_layers, "add_norm_kernel"),
        (triton_layers, "rotate_kernel"),
        (triton_attention, "attend_kernel"),
        (triton_attention, "combine_kernel"),
    )
    return {name: recorded_launches(module, name) for module, name in kernels}


def layer(
    tokens: int, width: int, groups: int, inner: int, dtype: torch.dtype, *, plain: bool
) -> None:
    """The launches of one layer with heads of 128, as LLaDA has them or with all else there is."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    heads = Heads(width // 128, groups, 128)
    sizes = (width, groups * 128, groups * 128)
    x = zeros(tokens, width)
    matrices = [zeros(n, width) for n in sizes]
    biases = [None if plain else zeros(n) for n in sizes]
    parts = fused_layers.product(x, matrices, biases)
    angles = (torch.zeros(tokens, 128 if plain else 64),) * 2
    room = zeros(1, 513, groups, 128)
    slots = Slots(room, room, torch.arange(tokens)) if plain else None
    norms = None if plain else Norms(zeros(128), zeros(128), 1e-6)
    query, _, _ = fused_layers.rotate(parts, heads, angles, norms, slots, dtype)
    mask = None if plain else torch.ones(1, 1, 1, 512, dtype=torch.bool)
    if tokens <= fused_layers.WINDOW:
        fused_layers.attend(query[None], room, room, 512, mask, 0.1)
    made = fused_layers.product(x, [zeros(width, width)], [None])
    x, normed = fused_layers.add_norm(x, made, zeros(width), 1e-5)
    opened = fused_layers.gated(normed, zeros(inner, width), zeros(inner, width))
    fused_layers.product(opened, [zeros(width, inner)], [None])


@pytest.mark.one_in(9)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("tokens", "width", "groups", "inner", "plain"),
    [(32, 4096, 32, 12288, True), (33, 3584, 4, 18944, False), (128, 4096, 8, 12288, True)],
    ids=["llada", "dream", "four rows"],
)
def test_kernels_compile(
    recorders: dict[str, Any],
    tokens: int,
    width: int,
    groups: int,
    inner: int,
    plain: bool,
    architecture: int,
) -> None:
    """And fit: what a program may take of shared memory is 227 KiB on both."""
    layer(tokens, width, groups, inner, HALF[0], plain=plain)
    for name, recorder in recorders.items():
        assert recorder.launches or (tokens > 64 and name in OF_A_WINDOW)
        for one in recorder.launches.values():
            built = one.compile(architecture)
            assert built.asm["cubin"]
            assert built.metadata.shared <= 227 * 1024, name
            assert ".f64" not in built.asm["ptx"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("each", [1, 32], ids=["one mask", "one of every query"])
def test_attention_of_many_rows_compiles(
    recorders: dict[str, Any], monkeypatch: pytest.MonkeyPatch, each: int, architecture: int
) -> None:
    """With a look at the mask first."""
    query, room = (torch.zeros(1, n, 32, 128, dtype=HALF[0]) for n in (32, 513))
    mask = torch.ones(1, 1, each, 512, dtype=torch.bool)
    for most in (fused_layers.AT_ONCE, 0):
        monkeypatch.setattr(fused_layers, "AT_ONCE", most)
        fused_layers.attend(query, room, room, 512, mask, 0.1)
    launches = recorders["attend_kernel"].launches.values()
    assert [one.given["SKIP"] for one in launches] == [False, True]
    for one in launches:
        built = one.compile(architecture)
        assert built.asm["cubin"]
        assert built.metadata.shared <= 227 * 1024


def test_what_only_machine_code_shows(recorders: dict[str, Any]) -> None:
    """Weights go straight to shared memory, 16 bytes at a time, and products to wide units."""
    layer(32, 4096, 32, 12288, HALF[1], plain=True)
    for name in ("product_kernel", "gated_kernel"):
        for one in recorders[name].launches.values():
            text = one.compile(90).asm["ptx"]
            assert "wgmma.mma_async" in text
            assert "cp.async.cg.shared.global" in text
            assert "cp.async.ca" not in text
            assert "ld.global.b16" not in text


def test_tiles_for_many_tokens(recorders: dict[str, Any]) -> None:
    """128 rows of a matrix that divides into them, else 64: they fit, and are wide products."""
    x = torch.zeros(128, 4096, dtype=HALF[1])
    for rows in (8192, 8256):
        weight = torch.zeros(rows, 4096, dtype=HALF[1])
        fused_layers.product(x, [weight], [None])
        fused_layers.gated(x, weight, weight)
    for name in ("product_kernel", "gated_kernel"):
        launches = recorders[name].launches.values()
        assert [one.given["ROWS"] for one in launches] == [128, 64]
        for one in launches:
            built = one.compile(90)
            assert built.metadata.shared <= 227 * 1024
            assert "wgmma.mma_async" in built.asm["ptx"]


def test_what_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 128, dtype=HALF[0])
    assert not fused_layers.covers(x)
    monkeypatch.setattr(fused_layers, "ON_CPU", True)
    assert [fused_layers.covers(x.to(kind)) for kind in (*HALF, torch.float32)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("width", "rotated", "shape", "kind", "fit"),
    [
        (128, 128, (256, 64), HALF[0], True),
        (128, 64, (64, 128), HALF[0], True),
        (128, 63, (64, 128), HALF[0], False),
        (96, 96, (64, 128), HALF[0], False),
        (256, 256, (64, 128), HALF[0], False),
        (128, 128, (96, 128), HALF[0], False),
        (128, 128, (64, 96), HALF[0], False),
        (128, 128, (64, 128), torch.float32, False),
    ],
)
def test_what_fits(
    width: int, rotated: int, shape: tuple[int, int], kind: torch.dtype, fit: bool
) -> None:
    weights = torch.zeros(shape, dtype=kind), torch.zeros(64, 64, dtype=HALF[0])
    assert fused_layers.fits(Heads(4, 2, width), rotated, HALF[0], *weights) == fit
    assert not fused_layers.fits(Heads(4, 2, width), rotated, HALF[0], weights[1][:, ::2])
