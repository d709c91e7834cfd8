"""Ragged batches packed end to end, so that no layer computes padding.

Shapes: B rows, L their padded width, N real tokens of all rows, H heads, E head width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor

from dlm.cache import Masked, Parts, View
from dlm.host import send
from dlm.varlen import by_rows, kernel, suits

LEAST = 0.05
"""Smallest share of padding for which packing is worth the copies."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Index maps between right-padded rows and packed tokens, usable on any device."""

    lengths: list[int]  # tokens of each row
    flat: Tensor  # int64 [N], index of each real token among the B L
    place: Tensor  # int64 [B, L], index of each column among the N; padding has the row's last
    bounds: Tensor  # int32 [B + 1], start of each row, and the end of the last

    @classmethod
    def of(cls, lengths: Sequence[int], width: int, device: torch.device) -> "Packing":
        """The packing of rows with the given lengths, in tokens, on a canvas of `width` columns."""
        sizes = torch.tensor(lengths)
        bounds = torch.tensor([0, *accumulate(lengths)])
        starts = bounds[:-1]
        row = torch.repeat_interleave(sizes)
        column = torch.arange(row.numel()) - starts[row]
        place = starts[:, None] + torch.arange(width).minimum(sizes[:, None] - 1)
        parts = (row * width + column, place, bounds.int())
        return cls([*lengths], *(send(part, device) for part in parts))

    def pack(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [1, N, ...]."""
        return values.flatten(0, 1).index_select(0, self.flat.to(values.device)).unsqueeze(0)

    def unpack(self, values: Tensor) -> Tensor:
        """[1, N, ...] -> [B, L, ...]; padding repeats the row's last token."""
        return values[0][self.place]

    def heads(self, values: Tensor) -> Tensor:
        """[1, H, N, E] -> [B, H, L, E]."""
        batch, width = self.place.shape
        spread = values.index_select(2, self.place.flatten().to(values.device)).squeeze(0)
        return torch.as_tensor(spread.unflatten(1, (batch, width)).transpose(0, 1))


def worthwhile(lengths: Sequence[int], width: int) -> bool:
    """Whether the rows hold enough padding for packing to pay."""
    return sum(lengths) < (1 - LEAST) * width * len(lengths)


class Packed(View):
    """A forward pass over packed rows: layers see N tokens, attention sees B rows."""

    def __init__(self, packing: Packing, keep: View | None, *, whole: bool = True) -> None:
        """Take the packing, and the view that stores keys and values, if any.

        `whole` says that all tokens of a row see each other, so that attention needs no mask.
        """
        self.packing = packing
        self.keep = keep
        self.whole = whole

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor | None:
        """Attention by a variable-length kernel if one applies, [1, N, H, E]."""
        if not self.whole or self.keep is not None or not suits(query):
            return None
        run = kernel()
        assert run is not None
        q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
        bounds = self.packing.bounds.to(q.device)
        return run(q, k, v, bounds, self.packing.place.shape[1], scaling)[None]

    def apart(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: int
    ) -> list[Masked] | None:
        """The tokens of each row, [1, H, L, E] with the row's own L, from [1, H, N, E]."""
        if not by_rows(query):
            return None
        if self.keep is not None:
            self.keep.update(self.packing.heads(key), self.packing.heads(value), layer)
        lengths = self.packing.lengths
        split = (part.split(lengths, 2) for part in (query, key, value))
        masks: Iterable[Tensor | None] = repeat(None, len(lengths))
        if mask is not None and not self.whole:
            each = mask.expand(len(lengths), -1, -1, -1).split(1)
            masks = (m[..., :n, :n] for m, n in zip(each, lengths, strict=True))
        return list(zip(*split, masks, strict=True))

    def join(self, rows: list[Tensor]) -> Tensor:
        """[1, L, H, E] each -> [1, N, H, E]."""
        return torch.cat(rows, 1)

    def enter(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Parts:
        """Unpacked rows [B, H, L, E] for attention, from [1, H, N, E]."""
        query, key, value = (self.packing.heads(part) for part in (query, key, value))
        return query, *self.update(key, value, layer)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Pass keys and values on to be stored."""
        return (key, value) if self.keep is None else self.keep.update(key, value, layer)

    def leave(self, out: Tensor) -> Tensor:
        """Pack attention's output again, [B, L, H, E] -> [1, N, H, E]."""
        return self.packing.pack(out)
