"""Which calls the fused Triton kernels answer, and how they are launched.

Only this module decides. The kernels answer the calls that `covers` admits; the torch path of
`statistics.py` answers all others, with the same results up to rounding:

- a device other than CUDA, an NVIDIA GPU below compute capability 8.0, an AMD GPU, or no triton;
- float64 logits, or no rows;
- lists of the likeliest tokens, `top` above 0;
- `top_k`, `top_p` or `min_p` that may drop a token, with a vocabulary above 2**22, whose masses
  could overflow.

Samples use the same random words. Sums of exponentials are added in another order, with the
exponential of the hardware, so masses differ from those of torch in their last bits. Two clocks
of a race that agree to about 1e-6 could change places. A top-p cut could move where a prefix
holds the requested share to about 1e-6: it then keeps a few tokens more or fewer, with no more
mass than that. Cuts of top-k and min-p are exact.

Shapes: N rows, V vocabulary, K tiles, J bonuses, G programs of a row.
"""

import struct
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels.call import Call
from dlm.kernels.capability import capability
from dlm.kernels.filters import Cut, least_logit
from dlm.kernels.noise import NoiseKey
from dlm.kernels.tiles import TILE, Bonus, over, tile_count

ON_CPU = False
"""Whether CPU tensors use the kernels too. For tests under Triton's interpreter."""
ON_CUDA = True
"""Whether CUDA tensors do, on devices that pass `selfcheck`."""

_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY: Final = (8, 0)
_MOST_TO_CUT: Final = 1 << 22


def covers(call: Call) -> bool:
    """Whether the kernels answer a call; the module docstring lists those that they do not."""
    if call.cuts and call.logits.shape[1] > _MOST_TO_CUT:
        return False
    if call.top or call.dtype not in _DTYPES or call.logits.shape[0] == 0:
        return False
    if call.device.type == "cpu":
        return ON_CPU
    return ON_CUDA and call.logits.is_cuda and _runs_on(call.device.index)


def _runs_on(index: int) -> bool:
    """Whether a CUDA device can run the kernels."""
    found = capability(index)
    return found is not None and found >= _CAPABILITY


@dataclass(frozen=True, slots=True, eq=False)
class FusedLaw:
    """softmax(l s / T) of every row, over all its tokens or those that the filters keep."""

    temperature: Tensor | None  # float32 [N], not below 0; None is 1
    scale: Tensor | None  # float32 [N]; None is 1
    filtered: bool = False


def fused_statistics(
    call: Call, drawn: FusedLaw | None, scored: FusedLaw | None
) -> dict[str, Tensor]:
    """Two launches: the scan, then the race and the statistics. Nothing waits for the device.

    A launch before them has filled T of every row, unless T is 0 or 1. A law from which a filter
    may drop a token first takes the launches of `find_cut`.

    Args:
        call: One that `covers` admits.
        drawn: What the sample follows, before the filters; None for the arg max.
        scored: What the statistics describe, before the filters; None if none is wanted.

    Returns:
        `sampled`, `maximum` and the wanted statistics, with the names of `TokenStatistics`.
    """
    # Imported here: triton takes half a second to import, and most machines do not need it.
    from dlm.kernels.triton_race import FIELDS, draw_kernel

    wanted, num_rows = call.wanted, call.logits.shape[0]
    table = call.logits.new_empty((len(FIELDS), num_rows), dtype=torch.float32)
    sampled = call.logits.new_empty(num_rows, dtype=torch.int64)
    laws = _distinct(call, drawn, scored)
    with torch.cuda.device_of(call.logits):
        cuts = {law: find_cut(call, law) for law in laws if law.filtered}
        draw_kernel[(num_rows,)](
            *_scan(call, laws, cuts, entropy="entropy" in wanted),
            None if call.tokens is None else call.tokens.contiguous(),
            *_noise(None if drawn is None else call.key),
            sampled,
            table,
            LAWS=len(laws),
            ENTROPY="entropy" in wanted,
            MARGIN="margin" in wanted,
            RACE=drawn is not None,
            TILES=_room(tile_count(call.logits.shape[1])),
            WIDTH=TILE,
            num_warps=4,
            enable_fp_fusion=True,
        )
    rows = dict(zip(FIELDS, table.unbind(), strict=True))
    return {"sampled": sampled, **{name: rows[name] for name in ("maximum", *wanted)}}


def _distinct(call: Call, drawn: FusedLaw | None, scored: FusedLaw | None) -> list[FusedLaw]:
    """The laws to weigh, with their filters and the drawn one first; equal laws appear once."""
    if drawn is not None:
        drawn = replace(drawn, filtered=call.cuts)
    if scored is not None:
        scored = replace(scored, filtered=call.cuts and call.law == "sampling")
    laws = [law for law in (drawn, scored) if law is not None]
    parts = {(id(law.temperature), id(law.scale), law.filtered) for law in laws}
    return laws[: len(parts)]


def _scan(
    call: Call, laws: list[FusedLaw], cuts: dict[FusedLaw, Tensor], entropy: bool
) -> tuple[Any, ...]:
    """Launch the scan, and return its arguments; the last one is its output."""
    from dlm.kernels.triton_scan import LOAD, PARTS, ROWS, scan_kernel

    num_rows, tiles = call.logits.shape[0], tile_count(call.logits.shape[1])
    filled = [*laws, FusedLaw(None, None), FusedLaw(None, None)][:2]
    common = (
        *_logits(call),
        *(part for law in filled for part in (*_tempering(law), cuts.get(law))),
        call.logits.new_empty((num_rows, tiles, PARTS), dtype=torch.float32),
    )
    scan_kernel[(tiles * -(-num_rows // ROWS),)](
        *common,
        LAWS=len(laws),
        ENTROPY=entropy,
        ROWS=ROWS,
        WIDTH=TILE,
        SPAN=LOAD // call.logits.element_size(),
        num_warps=ROWS,
        enable_fp_fusion=True,
    )
    return common


def find_cut(call: Call, law: FusedLaw) -> Tensor:
    """`filter_cut`, from the maxima that a scan finds and the last token that a search finds.

    Args:
        call: One that `covers` admits and that `cuts`.
        law: T / s of the rows.

    Returns:
        int32 [N, 2]: the cut, as the bits of its float32 logit and its token.
    """
    weighed = call.top_p is not None and call.top_p < 1
    maxima = _scan(call, [], {}, entropy=False)[-1] if weighed or call.min_p else None
    if not call.min_p:
        return _search(call, law, maxima)
    assert maxima is not None
    temperature = over(1.0 if law.temperature is None else law.temperature, law.scale)
    floor = least_logit(maxima[:, :, 0].amax(1, keepdim=True), temperature, call.min_p)
    last = Cut.at(floor)
    if call.searches:
        found = _search(call, law, maxima)
        last = Cut(found[:, :1].view(torch.float32), found[:, 1:]).above(floor)
    return torch.cat((last.value.view(torch.int32), last.token), 1)


def _search(call: Call, law: FusedLaw, maxima: Tensor | None) -> Tensor:
    """Where top-k and top-p cut, int32 [N, 2], in 5 to 17 launches: passes, then the last token.

    Top-k takes 4 passes if all logits fit 16 bits, and 8 otherwise. So does top-p, which also needs
    the maxima.
    """
    from dlm.kernels import triton_cut as kernel

    (num_rows, vocabulary), form = call.logits.shape, _format(call)
    counted = call.top_k if call.top_k is not None and call.top_k < vocabulary else None
    weighed = call.top_p if call.top_p is not None and call.top_p < 1 else None
    passes = (32 if form == kernel.FLOAT32 else 16) // kernel.DIGIT
    chunks = -(-vocabulary // kernel.CHUNK)
    counting = 0 if counted is None else passes
    steps = counting + (0 if weighed is None else passes)
    bits = int.from_bytes(struct.pack("<d", weighed or 1.0), "little")
    common = (*_logits(call), *_tempering(law), maxima)
    asked = (chunks, counting, counted or 0, _signed(bits), _signed(bits >> 32))
    options = {
        "FORMAT": form,
        "CHUNKS": _room(chunks),
        "TILES": _room(tile_count(vocabulary)),
        "enable_fp_fusion": True,
    }
    # Double buffering: a pass reads the results of the previous one while it writes its own.
    state = call.logits.new_empty((2, num_rows, kernel.STATE), dtype=torch.int64).unbind()
    found = call.logits.new_empty((2, num_rows, chunks, kernel.SLOTS), dtype=torch.int64).unbind()
    cut = call.logits.new_empty((num_rows, 2), dtype=torch.int32)
    for step in range(steps):
        old, new = step % 2, 1 - step % 2
        kernel.search_kernel[(num_rows * chunks,)](
            *(*common, state[old], found[old], *asked, step, state[new], found[new]),
            WEIGH=step >= counting,
            CHUNK=kernel.CHUNK,
            num_warps=kernel.WARPS,
            **options,
        )
    last = (state[steps % 2], found[steps % 2])
    kernel.last_kernel[(num_rows,)](
        *(*common, *last, *asked, steps, cut),
        WEIGH=weighed is not None,
        SWEEP=kernel.SWEEP,
        num_warps=kernel.SWEEP_WARPS,
        **options,
    )
    return cut


def _format(call: Call) -> int:
    """Format of the logits once a bonus is added; see `triton_cut.py`."""
    from dlm.kernels.triton_cut import BFLOAT16, FLOAT16, FLOAT32

    if call.dtype == torch.float32 or (call.bonus is not None and call.bonus.tokens.shape[1]):
        return FLOAT32
    return BFLOAT16 if call.dtype == torch.bfloat16 else FLOAT16


def _room(count: int) -> int:
    """The smallest power of 2 that is at least 2 and at least the count."""
    return max(2, 1 << (count - 1).bit_length())


def _tempering(law: FusedLaw) -> tuple[Any, ...]:
    """Temperature and scale as kernel arguments."""
    return tuple(x if x is None else x.contiguous() for x in (law.temperature, law.scale))


def _logits(call: Call) -> tuple[Any, ...]:
    """Logits, their adjustments and shapes as kernel arguments."""
    num_rows, vocabulary = call.logits.shape
    shape = (num_rows, vocabulary, tile_count(vocabulary))
    return call.logits, *call.logits.stride(), *shape, *_adjustments(call.mask, call.bonus)


def _adjustments(suppressed: Tensor | None, bonus: Bonus | None) -> tuple[Any, ...]:
    """Suppressed tokens and bonus as kernel arguments."""
    banned = None if suppressed is None else suppressed.contiguous().view(torch.uint8)
    if banned is not None and banned.data_ptr() % 16:  # `suppress` promises alignment
        banned = banned.clone()
    if bonus is None or bonus.tokens.shape[1] == 0:
        return banned, None, None, 0
    return banned, bonus.tokens.contiguous(), bonus.values.contiguous(), bonus.tokens.shape[1]


def _noise(key: NoiseKey | None) -> tuple[Tensor | None, ...]:
    """The noise keys of the rows as kernel arguments."""
    if key is None:
        return None, None, None, None
    return tuple(part.contiguous() for part in (key.seeds, key.row, key.position, key.draw))


def _signed(word: int) -> int:
    """The int32 with these 32 bits. All words get one type: another would recompile the kernel."""
    word &= 0xFFFFFFFF
    return word - (word >> 31 << 32)
