"""Every fused kernel compiles to machine code for three GPU generations. No GPU is needed.

The interpreter takes Python that the compiler does not, so that either check alone is too few.
"""

from typing import Any

import pytest
import torch

from dlm.kernels import STATISTICS, Bonus, NoiseKey
from dlm.kernels.call import Call
from dlm.kernels.statistics import by_kernels

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
backends = pytest.importorskip("triton.backends.compiler")

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.uint8: "u8",
}
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
)  # fmt: skip
"""Every flag of the kernels is on in one and off in another."""


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.given: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **more: Any) -> None:
            names = self.kernel.arg_names
            flags = {name: value for name, value in more.items() if name in names}
            self.given = dict(zip(names, arguments, strict=False)) | flags
            assert list(self.given) == names
            self.options = {name: value for name, value in more.items() if name not in names}

        return launch

    def compile(self, architecture: int) -> Any:
        """Compile as the launcher would: with the types, and what it knows of the values."""
        types: dict[str, str] = {}
        constants: dict[tuple[int, ...], Any] = {}
        hints: dict[tuple[int, ...], Any] = {}
        for place, (parameter, value) in enumerate(
            zip(self.kernel.params, self.given.values(), strict=True)
        ):
            name, free = parameter.name, not parameter.do_not_specialize
            plain = isinstance(value, int) and not isinstance(value, bool)
            if parameter.is_constexpr or value is None or (plain and value == 1 and free):
                types[name], constants[(place,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                types[name], number = f"*{TYPES[value.dtype]}", value.data_ptr()
            else:
                types[name], number = ("fp32", 1) if isinstance(value, float) else ("i32", value)
            if free and number % 16 == 0:
                hints[(place,)] = [["tt.divisibility", 16]]
        return triton.compile(
            compiler.ASTSource(self.kernel, types, constants, hints),
            target=backends.GPUTarget("cuda", architecture, 32),
            options=self.options,
        )


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> tuple[Recorder, Recorder]:
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: there is nothing to compile")
    from dlm.kernels import triton_race, triton_scan

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    scan, draw = Recorder(triton_scan.scan_kernel), Recorder(triton_race.draw_kernel)
    monkeypatch.setattr(triton_scan, "scan_kernel", scan)
    monkeypatch.setattr(triton_race, "draw_kernel", draw)
    return scan, draw


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
            suppressed=some if "suppressed" in options else None,
            tokens=index,
            key=NoiseKey(0, index, index, index),
            scale=torch.ones(2) if "scale" in options else None,
            scale_statistics=options.get("scale_statistics", True),
            bonus=Bonus(index[:, None], torch.ones(2, 1)) if "bonus" in options else None,
        )
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("number", range(len(LAUNCHES)))
def test_kernels_compile(recorders: Any, number: int, architecture: int) -> None:
    launch(LAUNCHES[number])
    for recorder in recorders:
        built = recorder.compile(architecture)
        assert built.asm["cubin"]
        # No float64 in any kernel: it runs at a 32nd of the speed, or less.
        assert ".f64" not in built.asm["ptx"]


def test_what_only_machine_code_shows(recorders: Any) -> None:
    """Loads of 16 bytes and sums that stay in a warp, on which the bandwidth rests, and NaN."""
    launch(LAUNCHES[1])
    scan, _ = recorders
    lines = scan.compile(90).asm["ptx"].splitlines()
    assert sum("max.NaN.f32" in line for line in lines) == 32, "a NaN that the clamp would hide"
    assert sum("ld.global.v4.b32" in line for line in lines) == 4
    assert sum("shfl.sync" in line for line in lines) <= 15 + 2  # and 2 for the mask
    assert sum("bar.sync" in line for line in lines) <= 1 + 3  # likewise
