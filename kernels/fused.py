"""Which calls the fused Triton kernels answer, and their launch.

This is the one place that decides. The kernels take what `covers` says; every other call takes
the torch path of `statistics.py`, whose answers are the same:

- a device other than CUDA, an NVIDIA GPU below compute capability 8.0, an AMD GPU, or no triton;
- float64 logits, or no rows;
- `top_k` or `top_p` that may drop a token;
- lists of likeliest tokens, `top` above 0.

Samples come from the same random words. Sums of exponentials are added in another order, with
the exponential of the hardware, so masses differ in their last bits from those of torch, and two
clocks of a race that agree to about 1e-6 could change places.

Shapes: N rows, V vocabulary, K tiles, J bonuses.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels.call import Call
from dlm.kernels.noise import NoiseKey
from dlm.kernels.tiles import TILE, Bonus, tile_count

ON_CPU = False
"""Whether CPU tensors take the kernels too. For tests under Triton's interpreter."""
ON_CUDA = True
"""Whether CUDA tensors do, on devices where they pass `selfcheck`."""

_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY: Final = (8, 0)


def covers(call: Call) -> bool:
    """Whether the kernels answer a call; the list of those that they do not is above."""
    if call.cuts or call.top or call.dtype not in _DTYPES or call.logits.shape[0] == 0:
        return False
    if call.device.type == "cpu":
        return ON_CPU
    return ON_CUDA and call.logits.is_cuda and _runs_on(call.device.index)


@cache
def _runs_on(index: int) -> bool:
    """Whether a CUDA device can run the kernels. Asked once: no call waits for it."""
    if torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(index) >= _CAPABILITY


@dataclass(frozen=True, slots=True)
class FusedLaw:
    """softmax(l s / T) of every row, over all its tokens."""

    temperature: float  # above 0, in the range of `statistics.py`
    scale: Tensor | None  # float32 [N]


def fused_statistics(
    call: Call, drawn: FusedLaw | None, scored: FusedLaw | None
) -> dict[str, Tensor]:
    """Two launches: the scan, then the race and the statistics. Nothing waits for the device.

    Args:
        call: One that `covers` admits.
        drawn: What the sample follows; None for the arg max.
        scored: What the statistics describe; None if none is wanted.

    Returns:
        `sampled`, `maximum` and what is wanted, as `TokenStatistics` names them.
    """
    # Imported here, as triton costs half a second and most machines have no use for it.
    from dlm.kernels.triton_race import FIELDS, draw_kernel
    from dlm.kernels.triton_scan import LOAD, PARTS, ROWS, scan_kernel

    logits, wanted = call.logits, call.wanted
    (num_rows, vocabulary), tiles = logits.shape, tile_count(logits.shape[1])
    parts = logits.new_empty((num_rows, tiles, PARTS), dtype=torch.float32)
    table = logits.new_empty((len(FIELDS), num_rows), dtype=torch.float32)
    sampled = logits.new_empty(num_rows, dtype=torch.int64)
    laws = _distinct(drawn, scored)
    entropy = "entropy" in wanted
    common = (
        *(logits, *logits.stride(), num_rows, vocabulary, tiles),
        *_adjustments(call.suppressed, call.bonus),
        *_parameters(laws),
        parts,
    )
    with torch.cuda.device_of(logits):
        grid = (tiles * -(-num_rows // ROWS),)
        scan_kernel[grid](
            *common,
            LAWS=len(laws),
            ENTROPY=entropy,
            ROWS=ROWS,
            WIDTH=TILE,
            SPAN=LOAD // logits.element_size(),
            num_warps=ROWS,
            enable_fp_fusion=True,
        )
        draw_kernel[(num_rows,)](
            *common,
            None if call.tokens is None else call.tokens.contiguous(),
            *_noise(None if drawn is None else call.key),
            sampled,
            table,
            LAWS=len(laws),
            ENTROPY=entropy,
            MARGIN="margin" in wanted,
            RACE=drawn is not None,
            TILES=max(2, 1 << (tiles - 1).bit_length()),
            WIDTH=TILE,
            num_warps=4,
            enable_fp_fusion=True,
        )
    rows = dict(zip(FIELDS, table.unbind(), strict=True))
    return {"sampled": sampled, **{name: rows[name] for name in ("maximum", *wanted)}}


def _distinct(drawn: FusedLaw | None, scored: FusedLaw | None) -> list[FusedLaw]:
    """The laws to weigh, the drawn one first; equal laws once."""
    if drawn is None or scored is None:
        return [law for law in (drawn, scored) if law is not None]
    same = drawn.temperature == scored.temperature and drawn.scale is scored.scale
    return [drawn] if same else [drawn, scored]


def _parameters(laws: list[FusedLaw]) -> tuple[Any, ...]:
    """Temperature and scale of two laws, as the kernels take them."""
    filled = [*laws, FusedLaw(1.0, None), FusedLaw(1.0, None)][:2]
    return tuple(
        part
        for law in filled
        for part in (law.temperature, None if law.scale is None else law.scale.contiguous())
    )


def _adjustments(suppressed: Tensor | None, bonus: Bonus | None) -> tuple[Any, ...]:
    """Suppressed tokens and bonus, as the kernels take them."""
    banned = None if suppressed is None else suppressed.contiguous().view(torch.uint8)
    if banned is not None and banned.data_ptr() % 16:  # what `suppress` promises the compiler
        banned = banned.clone()
    if bonus is None or bonus.tokens.shape[1] == 0:
        return banned, None, None, 0
    return banned, bonus.tokens.contiguous(), bonus.values.contiguous(), bonus.tokens.shape[1]


def _noise(key: NoiseKey | None) -> tuple[Any, ...]:
    """Halves of the seed, and what else keys the noise of the rows."""
    if key is None:
        return 0, 0, None, None, None
    rows = (part.contiguous() for part in (key.row, key.position, key.draw))
    return _signed(key.seed), _signed(key.seed >> 32), *rows


def _signed(word: int) -> int:
    """The int32 of 32 bits. One type for every seed: another would compile the kernel again."""
    word &= 0xFFFFFFFF
    return word - (word >> 31 << 32)
