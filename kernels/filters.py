"""Top-k, top-p and min-p as one cut per row, which a streamed pass can apply, and top lists.

Shapes: N rows, V vocabulary, S ranked tokens, K tiles.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.kernels.tiles import TILE, Temperature

SHORTLISTS: Final = (TILE // 8, 8 * TILE)
"""Sizes of the shortlists that are searched for a nucleus first: a full sort costs 40 and 5 times
as much."""
LAST: Final = 2**31 - 1
"""A token id after all others."""
CELL: Final = 64
"""Tokens per cell; the maximum of a cell tells whether it can hold any of the likeliest tokens."""


@dataclass(frozen=True, slots=True)
class Cut:
    """End of the order (logit descending, id ascending): the last token kept, or a later point."""

    value: Tensor  # float32 [N, 1]
    token: Tensor  # int32 [N, 1]

    def __getitem__(self, rows: slice) -> "Cut":
        return Cut(self.value[rows], self.token[rows])

    def drops(self, values: Tensor, ids: Tensor) -> Tensor:
        """Whether tokens `ids` with logits `values` come after the cut; bool of that shape."""
        return (values < self.value) | ((values == self.value) & (ids > self.token))

    @classmethod
    def at(cls, floor: Tensor) -> "Cut":
        """The cut that keeps logits not below a floor, float32 [N, 1]."""
        return cls(floor, torch.full_like(floor, LAST, dtype=torch.int32))

    def above(self, floor: Tensor) -> "Cut":
        """This cut, but without logits below a floor, float32 [N, 1]."""
        higher = floor > self.value
        return Cut(floor.where(higher, self.value), self.token.masked_fill(higher, LAST))


def filter_cut(
    values: Tensor,
    temperature: Temperature,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None = None,
) -> Cut:
    """Where top-k, then top-p among its survivors, and min-p cut the tempered distribution.

    Top-k keeps the k likeliest tokens. Top-p keeps the shortest prefix of those whose fraction of
    their mass is at least p (Holtzman et al. 2020, arXiv:1904.09751). Among equal logits the lower
    id is kept, so exactly the counted number survives. Min-p keeps tokens of at least p times the
    probability of the likeliest one (Nguyen et al. 2024, arXiv:2407.01082).

    Args:
        values: float32 [N, V], finite logits.
        temperature: Above 0; a number or float32 [N, 1].
        top_k: At least 1, or None.
        top_p: In (0, 1], or None.
        min_p: In (0, 1], or None.

    Returns:
        The cut of each row.
    """
    if min_p is not None:
        floor = least_logit(values.amax(1, keepdim=True), temperature, min_p)
        if top_k is None and top_p is None:
            return Cut.at(floor)
        return filter_cut(values, temperature, top_k, top_p).above(floor)
    size = values.shape[1] if top_k is None else min(top_k, values.shape[1])
    if top_p is None:
        ranked, ids = leaders(values, size)
        return Cut(ranked[:, -1:], ids[:, -1:].int())
    ranked, order, count = _nucleus(values, size, temperature, top_p)
    count.clamp_(max=ranked.shape[1])  # the last tile may be partly padding
    last = ranked.gather(1, count - 1)
    if order is not None:
        return Cut(last, order.gather(1, count - 1).int())
    ties_kept = count - (ranked > last).sum(1, keepdim=True)
    del ranked  # frees memory for the running count, which is as large
    seen = (values == last).cumsum(1, dtype=torch.int32)
    return Cut(last, torch.searchsorted(seen, ties_kept.int(), out_int32=True))


def least_logit(maximum: Tensor, temperature: Temperature, min_p: float) -> Tensor:
    """Smallest logit min-p keeps, m + T ln p: exp(l / T) >= p exp(m / T); float32, shaped as m."""
    if not isinstance(temperature, Tensor):  # filled on the device: a copy to a GPU would wait
        temperature = torch.full_like(maximum, temperature)
    return maximum + temperature * math.log(min_p)  # float32, however the temperature was given


def likeliest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in the order (logit descending, id ascending).

    `torch.topk` orders equal values arbitrarily, and chooses arbitrarily among those equal to its
    last value. The tokens it returns above the last value are right as a set; the rest are replaced
    by the first tokens that equal that value.

    Args:
        values: float32 [N, V].
        count: How many, S in [1, V].

    Returns:
        Logits, float32 [N, S], and ids, int64 [N, S].
    """
    ranked, ids = values.topk(count)
    last = ranked[:, -1:]
    above = (ranked > last).sum(1, keepdim=True)
    place = torch.arange(count, device=values.device).expand_as(ids)
    seen = (values == last).cumsum(1, dtype=torch.int32)
    equal = torch.searchsorted(seen, (place + 1 - above).clamp_(min=1).int())
    del seen
    ids = torch.where(place < above, ids, equal)
    ids = ids.clamp_(max=values.shape[1] - 1).sort(dim=1).values  # NaN equals nothing, not even NaN
    ranked, order = values.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ranked, ids.gather(1, order)


def leaders(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`likeliest`, but over a part of the tokens if there are many.

    The S likeliest tokens lie in the first S cells in the order (maximum descending, index
    ascending): every cell that precedes a token's cell contains a token that precedes it.

    Args:
        values: float32 [N, V].
        count: How many, S in [1, V].

    Returns:
        Logits, float32 [N, S], and ids, int64 [N, S].
    """
    if values.shape[1] % CELL or count * CELL >= values.shape[1]:
        return likeliest(values, count)
    cells = values.view(values.shape[0], -1, CELL)
    cell = likeliest(cells.amax(2), count)[1].sort(dim=1).values
    picked = cells.gather(1, cell[:, :, None].expand(-1, -1, CELL)).flatten(1)
    ranked, place = likeliest(picked, count)
    return ranked, cell.gather(1, place // CELL) * CELL + place % CELL


def _nucleus(
    values: Tensor, size: int, temperature: Temperature, share: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The likeliest tokens in order, and how many of them hold the fraction `share` of the mass.

    Args:
        values: float32 [N, V].
        size: Only this many likeliest tokens have mass.
        temperature: Above 0; a number or float32 [N, 1].
        share: In (0, 1].

    Returns:
        Ranked logits, float32 [N, S]; their ids, int64 [N, S], or None where computing ids would
        double the cost; and a count of at least 1, int64 [N, 1].
    """
    top = values.amax(1, keepdim=True)
    if size < values.shape[1]:
        ranked, ids = leaders(values, size)
        ends, weights = _running_mass(ranked, top, temperature)
        return ranked, ids, _prefix_length(ends, weights, share * ends[:, -1:])
    # The total is that of the unsorted row, so that all paths below give the same count.
    target = share * _running_mass(values, top, temperature)[0][:, -1:]
    for short in SHORTLISTS:
        if size <= short or values.device.type != "cpu":  # a GPU would have to sync
            continue
        order = None
        if short * CELL < size:
            ranked, order = leaders(values, short)
        else:
            ranked = values.topk(short).values
        ends, weights = _running_mass(ranked, top, temperature)
        if bool((ends[:, -1:] >= target).all()):
            return ranked, order, _prefix_length(ends, weights, target)
    ranked = values.sort(dim=1, descending=True).values
    return ranked, None, _prefix_length(*_running_mass(ranked, top, temperature), target)


def _running_mass(values: Tensor, top: Tensor, temperature: Temperature) -> tuple[Tensor, Tensor]:
    """Tempered weights exp((l - top) / T) in tiles, and their running sum at the end of each tile.

    Sums run over tiles first: a float32 running sum over V would lose the whole tail, and float64
    is affordable only for one tile.

    Args:
        values: float32 [N, S].
        top: float32 [N, 1], the largest logit.
        temperature: Above 0; a number or float32 [N, 1].

    Returns:
        Sums, float64 [N, K], and weights, float32 [N, K, TILE].
    """
    weights = (values - top).div_(temperature).exp_()
    if values.shape[1] % TILE:
        weights = pad(weights, (0, -values.shape[1] % TILE))
    tiles = weights.view(values.shape[0], -1, TILE)
    return tiles.sum(-1).double().cumsum(1), tiles


def _prefix_length(ends: Tensor, tiles: Tensor, target: Tensor) -> Tensor:
    """Length of the shortest prefix whose mass is at least `target`.

    Args:
        ends: float64 [N, K], running sum at the end of each tile.
        tiles: float32 [N, K, TILE], descending.
        target: float64 [N, 1].

    Returns:
        int64 [N, 1], at least 1.
    """
    # Rounding may leave the last sum short of the target; the clamps then end at the row's end.
    full = (ends < target).sum(1, keepdim=True).clamp_(max=ends.shape[1] - 1)
    start = (ends - tiles.sum(-1)).gather(1, full)
    inside = tiles[torch.arange(len(full), device=full.device), full[:, 0]]
    rest = (inside.double().cumsum(1) + start < target).sum(1, keepdim=True)
    return full * TILE + rest.clamp_(max=TILE - 1) + 1
