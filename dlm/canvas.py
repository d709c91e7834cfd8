"""The token grid, its blocks, and the budget of forward passes for each block.

Shapes: B rows, L canvas, N blocks of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.kernels.noise import signed
from dlm.kernels.tiles import bounded
from dlm.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Canvas:
    """A batch of right-padded rows, so that a token's position is its column.

    Blanks are the positions that held the mask id at the start; all other tokens are fixed. Blocks
    of `block_length` positions are counted from a row's first blank. If attention blocks lie on a
    grid, they are counted from the start of the attention block that holds it.
    """

    tokens: Tensor  # int64 [B, L]
    blank: Tensor  # bool [B, L]
    start: Tensor  # int64 [B], first blank
    origin: Tensor  # int64 [B], where the first block begins
    stop: Tensor  # int64 [B], one past the last blank
    blanks: Tensor  # int64 [B, N], blanks of each block
    budget: Tensor  # int64 [B, N], forward passes each block may take, 0 for no limit
    length: Tensor  # int64 [B], tokens of the row, padding not counted
    row: Tensor  # int64 [B], index among the rows of the same layout
    row_key: Tensor  # int64 [B], with the seed, keys the noise of the row
    seed: Tensor  # int64 [B]
    temperature: Tensor  # float32 [B], sampling temperature; 0 takes the arg max
    language: Tensor  # int64 [B], index among the constraints of the batch; 0 if there are none

    @property
    def shape(self) -> tuple[int, ...]:
        """B, L and N."""
        return *self.tokens.shape, self.blanks.shape[1]

    @property
    def span(self) -> int:
        """The most positions of any row from its first block to its last blank.

        Waits for the device.
        """
        return int((self.stop - self.origin).max())

    def reach(self, most: int) -> int:
        """The largest `span` if rows may grow to `most` blanks. Waits for the device."""
        return most + int((self.stop - self.origin - self.blank.sum(-1)).max())

    @classmethod
    def stack(cls, parts: Sequence["Canvas"], pad_id: int) -> "Canvas":
        """Concatenate canvases, padded to the widest and to the most blocks."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.tokens.shape[1] for part in parts)
        blocks = max(part.blanks.shape[1] for part in parts)
        fill = {"tokens": (width, pad_id), "blank": (width, 0)}
        fill |= {"blanks": (blocks, 0), "budget": (blocks, 0)}
        kept = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            if f.name in fill:
                to, value = fill[f.name]
                values = [pad(each, (0, to - each.shape[1]), value=value) for each in values]
            kept[f.name] = torch.cat(values)
        return cls(**kept)

    def with_blocks(self, count: int) -> "Canvas":
        """The same rows, padded with empty blocks to `count` of them."""
        more = count - self.blanks.shape[1]
        if more == 0:
            return self
        return replace(self, blanks=pad(self.blanks, (0, more)), budget=pad(self.budget, (0, more)))

    def select(self, index: Tensor, length: int) -> "Canvas":
        """The rows `index`, cut to the first `length` columns."""
        wide = {"tokens": self.tokens[:, :length], "blank": self.blank[:, :length]}
        parts = {f.name: wide.get(f.name, getattr(self, f.name)) for f in fields(self)}
        return Canvas(**{name: part[index] for name, part in parts.items()})


def build(  # noqa: PLR0913 (the parts of a row)
    rows: Sequence[Sequence[int]],
    *,
    mask_id: int,
    pad_id: int,
    block_length: int,
    steps: int | None,
    row_keys: Sequence[int],
    seed: int,
    temperature: float,
    device: torch.device,
    surplus: bool = False,
    grid: int | None = None,
    columns: int | None = None,
) -> Canvas:
    """Lay out rows of token ids, each with at least one mask.

    Args:
        rows: token ids, with the mask id at every position to decode.
        mask_id: id that marks a blank.
        pad_id: id that pads shorter rows on the right.
        block_length: positions of a block, at least 1.
        steps: budget of forward passes for each row, shared by its blocks in proportion to their
            blanks; None for no limit.
        row_keys: one 64-bit int for each row.
        seed: 64-bit int.
        temperature: at least 0.
        device: where the canvas lives.
        surplus: whether a block may take more forward passes than it has blanks.
        grid: attention blocks begin at multiples of this, itself a multiple of `block_length`; None
            if they do not lie on a grid.
        columns: L, at least the length of the longest row, which is the default.
    """
    width = max(map(len, rows)) if columns is None else columns
    padded = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    tokens = torch.tensor(padded, dtype=torch.int64)
    inside = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    blank = (tokens == mask_id) & inside
    start = blank.int().argmax(-1)
    stop = width - blank.flip(-1).int().argmax(-1)
    origin = start if grid is None else start - start % grid
    blanks = blanks_per_block(blank, origin, block_length)
    budget = forwards_per_block(blanks, steps, surplus=surplus)
    keys = torch.tensor([signed(key) for key in row_keys], dtype=torch.int64)
    index = torch.arange(len(rows))
    length = inside.sum(-1)
    seeds = torch.full_like(keys, signed(seed))
    each = bounded(temperature) if temperature else 0.0
    warmth = torch.full(keys.shape, each, dtype=torch.float32)
    parts = (
        tokens, blank, start, origin, stop, blanks, budget, length, index, keys, seeds, warmth,
        torch.zeros_like(index),
    )  # fmt: skip
    return Canvas(*(part.to(device) for part in parts))


def active_length(block_length: int | None, spec: ModelSpec) -> int | None:
    """The block length for decoding: at most, and a divisor of, the size of an attention block.

    Tokens of one attention block see each other and none of a later one, so a decoding block must
    not cross its end. If attention blocks may have any length, each decoding block is one.
    """
    size = spec.block_size
    if size is None:
        return block_length
    most = min(block_length or size, size)
    return next(n for n in range(most, 0, -1) if spec.causal or size % n == 0)


def blanks_per_block(blank: Tensor, origin: Tensor, block_length: int) -> Tensor:
    """Blanks in each block, int64 [B, N], from bool [B, L] and the first block's start, [B]."""
    place = torch.arange(blank.shape[1]) - origin[:, None]
    block = place.div(block_length, rounding_mode="floor")
    last = int(block[blank].max())  # padding and closing tokens are in no block
    blanks = torch.zeros(blank.shape[0], last + 1, dtype=torch.int64)
    return blanks.scatter_add_(1, block.clamp(0, last), blank.long())


def forwards_per_block(blanks: Tensor, steps: int | None, *, surplus: bool = False) -> Tensor:
    """Share `steps` among the blocks of each row in proportion to their blanks.

    A block with c blanks gets one forward pass, and of the remaining ones a share in proportion to
    c - 1, rounded up along the row, so that all `steps` are used as long as there are no more of
    them than blanks. If there are fewer `steps` than blocks, each block gets one.

    Args:
        blanks: int64 [B, N].
        steps: forward passes of a row; None gives 0 everywhere, which means no limit.
        surplus: whether blocks may take more forward passes than they have blanks; the passes that
            exceed the blanks are then shared in proportion to c.

    Returns:
        int64 [B, N].
    """
    if steps is None:
        return torch.zeros_like(blanks)
    first = (blanks > 0).long()
    spare = (steps - first.sum(-1, keepdim=True)).clamp(min=0)
    others = blanks - first
    total = others.sum(-1, keepdim=True)
    shares = first + shared_along(spare.minimum(total), others)
    return shares + shared_along((spare - total).clamp(min=0), blanks) if surplus else shares


def shared_along(amount: Tensor, weights: Tensor) -> Tensor:
    """Integer shares of an amount [B, 1] by weights [B, N], rounded up along the row; [B, N]."""
    ends = weights.cumsum(-1)
    upto = -(-amount * ends // ends[:, -1:].clamp(min=1))
    return upto.diff(dim=-1, prepend=torch.zeros_like(amount))
