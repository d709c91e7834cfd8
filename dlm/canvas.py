"""The token grid, its blocks and the forwards each block may take.

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
    """Right-padded rows, so that the position of a token is its column.

    Blanks are the positions that held the mask id at the start; everything else is given and
    never changes. Blocks of `block_length` positions are counted from a row's first blank; where
    blocks of attention lie on a grid, from the start of the one that holds it.
    """

    tokens: Tensor  # int64 [B, L]
    blank: Tensor  # bool [B, L]
    start: Tensor  # int64 [B], first blank
    origin: Tensor  # int64 [B], where the first block begins
    stop: Tensor  # int64 [B], one past the last blank
    blanks: Tensor  # int64 [B, N], blanks of each block
    budget: Tensor  # int64 [B, N], forwards each block may take, 0 for no limit
    length: Tensor  # int64 [B], tokens of the row, padding not counted
    row: Tensor  # int64 [B], index among the rows that were laid out together
    row_key: Tensor  # int64 [B], keys the noise of the row
    seed: Tensor  # int64 [B], likewise
    temperature: Tensor  # float32 [B], that tokens of the row are drawn at; 0 takes the arg max
    language: Tensor  # int64 [B], which of the languages of its batch the text is of; 0 of none

    @property
    def shape(self) -> tuple[int, ...]:
        """B, L and N."""
        return *self.tokens.shape, self.blanks.shape[1]

    @property
    def span(self) -> int:
        """Positions from the first block to the last blank, at most over rows.

        Waits for the device.
        """
        return int((self.stop - self.origin).max())

    def reach(self, most: int) -> int:
        """`span` of rows whose blanks may come to `most` of them, at most. Waits for the device."""
        return most + int((self.stop - self.origin - self.blank.sum(-1)).max())

    @classmethod
    def stack(cls, parts: Sequence["Canvas"], pad_id: int) -> "Canvas":
        """The rows of several, as wide and with as many blocks as the widest."""
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
        """The same rows, with empty blocks up to a number of them."""
        more = count - self.blanks.shape[1]
        if more == 0:
            return self
        return replace(self, blanks=pad(self.blanks, (0, more)), budget=pad(self.budget, (0, more)))

    def select(self, index: Tensor, length: int) -> "Canvas":
        """The rows `index`, with only the first `length` columns."""
        wide = {"tokens": self.tokens[:, :length], "blank": self.blank[:, :length]}
        parts = {f.name: wide.get(f.name, getattr(self, f.name)) for f in fields(self)}
        return Canvas(**{name: part[index] for name, part in parts.items()})


def build(  # noqa: PLR0913 (what a row is made of)
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
    """Lay out rows of ids, each with at least one mask.

    Args:
        rows: token ids, the mask id wherever a token is to be decoded.
        mask_id: id that marks a blank.
        pad_id: id behind the end of shorter rows.
        block_length: positions, at least 1.
        steps: forwards budget of each row, shared by its blocks in proportion to their blanks; None
            for no limit.
        row_keys: one 64-bit int for each row.
        seed: 64-bit int.
        temperature: at least 0.
        device: where the canvas lives.
        surplus: whether a block may take more forwards than it has blanks.
        grid: what blocks of attention begin at multiples of; a multiple of `block_length`.
        columns: L, at least the tokens of the longest row; None for just those.
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
    """Tokens of a block to decode: at most, and a divisor of, a block of the network's attention.

    Tokens of one attention block see each other and none of a later one, so a block to decode must
    not reach over its end. Where each may be of any length, each is one to decode.
    """
    size = spec.block_size
    if size is None:
        return block_length
    most = min(block_length or size, size)
    return next(n for n in range(most, 0, -1) if spec.causal or size % n == 0)


def blanks_per_block(blank: Tensor, origin: Tensor, block_length: int) -> Tensor:
    """Blanks of each block, int64 [B, N], of bool [B, L] and where the first begins, [B]."""
    place = torch.arange(blank.shape[1]) - origin[:, None]
    block = place.div(block_length, rounding_mode="floor")
    last = int(block[blank].max())  # padding and what closes a row lie in no block
    blanks = torch.zeros(blank.shape[0], last + 1, dtype=torch.int64)
    return blanks.scatter_add_(1, block.clamp(0, last), blank.long())


def forwards_per_block(blanks: Tensor, steps: int | None, *, surplus: bool = False) -> Tensor:
    """Share `steps` among the blocks of each row in proportion to their blanks.

    A block with c blanks takes one forward and its share of the rest by the c - 1 others, rounded
    up along the row, so that all `steps` are used while they do not outnumber the blanks. Fewer
    `steps` than blocks means one each.

    Args:
        blanks: int64 [B, N].
        steps: forwards of a row; None gives 0 everywhere, which stands for no limit.
        surplus: whether blocks may take more forwards than they have blanks: those that are left
            are then shared by the c blanks.

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
    """Whole shares of an amount [B, 1] by weights [B, N], rounded up along the row; [B, N]."""
    ends = weights.cumsum(-1)
    upto = -(-amount * ends // ends[:, -1:].clamp(min=1))
    return upto.diff(dim=-1, prepend=torch.zeros_like(amount))
