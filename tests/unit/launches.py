"""What Triton kernels are launched with, kept instead of run, so that it can be compiled."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.backends.compiler as backends
import triton.compiler as compiler

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.int8: "i8",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was launched with."""

    kernel: Any
    given: dict[str, Any]
    options: dict[str, Any]

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


class Recorder:
    """Stands for a kernel and keeps what it is launched with, once for each set of flags."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: dict[str, Launch] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **more: Any) -> None:
            names = self.kernel.arg_names
            flags = {name: value for name, value in more.items() if name in names}
            given = dict(zip(names, arguments, strict=False)) | flags
            assert list(given) == names
            options = {name: value for name, value in more.items() if name not in names}
            kinds = [getattr(value, "dtype", value is None) for value in arguments]
            self.launches[str((flags, kinds))] = Launch(self.kernel, given, options)

        return launch
