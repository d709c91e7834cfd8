"""Top-k and top-p as one bound a row, so that a streamed pass can apply them, and top lists.

Shapes: N rows, V vocabulary, S ranked tokens, K tiles.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.kernels.tiles import TILE, Temperature

SHORTLIST: Final = 8 * TILE
"""Tokens among which a nucleus is looked for first: ranking these costs a fifth of a full sort."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The last token that survives a filter, in the order (logit descending, id ascending)."""

    value: Tensor  # float32 [N, 1]
    token: Tensor  # int32 [N, 1]

    def __getitem__(self, rows: slice) -> "Cut":
        return Cut(self.value[rows], self.token[rows])

    def drops(self, values: Tensor, ids: Tensor) -> Tensor:
        """Whether tokens `ids` with logits `values` come after the cut; bool of that shape."""
        return (values < self.value) | ((values == self.value) & (ids > self.token))


def filter_cut(
    values: Tensor, temperature: Temperature, top_k: int | None, top_p: float | None
) -> Cut:
    """Where top-k, and then top-p among its survivors, cut the tempered distribution.

    Top-k keeps the k likeliest tokens; top-p keeps the shortest prefix of those whose share of
    their mass is at least p (Holtzman et al. 2020, arXiv:1904.09751). Among equal logits the lower
    id is kept, so exactly the counted number survives.

    Args:
        values: float32 [N, V], finite logits.
        temperature: Above 0; a number or float32 [N, 1].
        top_k: At least 1, or None.
        top_p: In (0, 1], or None.

    Returns:
        The cut of each row.
    """
    size = values.shape[1] if top_k is None else min(top_k, values.shape[1])
    if top_p is None:
        ranked = values.topk(size).values
        count = torch.full_like(ranked[:, :1], size, dtype=torch.int64)
    else:
        ranked, count = _nucleus(values, size, temperature, top_p)
        count.clamp_(max=ranked.shape[1])  # the last tile may be part padding
    last = ranked.gather(1, count - 1)
    ties_kept = count - (ranked > last).sum(1, keepdim=True)
    del ranked  # before the running count needs as much memory
    seen = (values == last).cumsum(1, dtype=torch.int32)
    return Cut(last, torch.searchsorted(seen, ties_kept.int(), out_int32=True))


def likeliest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in the order (logit descending, id ascending).

    `torch.topk` orders equals as it likes, and at its end even chooses among them. What it returns
    above its last value is right as a set; the rest are the first tokens that equal that value.

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


def _nucleus(
    values: Tensor, size: int, temperature: Temperature, share: float
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in order, and how many of them hold `share` of the mass.

    Args:
        values: float32 [N, V].
        size: Only this many likeliest tokens have mass.
        temperature: Above 0; a number or float32 [N, 1].
        share: In (0, 1].

    Returns:
        Ranked logits, float32 [N, S], and a count in [1, S], int64 [N, 1].
    """
    top = values.amax(1, keepdim=True)
    if size < values.shape[1]:
        ranked = values.topk(size).values
        ends, weights = _running_mass(ranked, top, temperature)
        return ranked, _prefix_length(ends, weights, share * ends[:, -1:])
    # The total comes from the unsorted row, so that both paths below give the same count.
    target = share * _running_mass(values, top, temperature)[0][:, -1:]
    if size > SHORTLIST and values.device.type == "cpu":  # elsewhere the question would sync
        ranked = values.topk(SHORTLIST).values
        ends, weights = _running_mass(ranked, top, temperature)
        if bool((ends[:, -1:] >= target).all()):
            return ranked, _prefix_length(ends, weights, target)
    ranked = values.sort(dim=1, descending=True).values
    return ranked, _prefix_length(*_running_mass(ranked, top, temperature), target)


def _running_mass(values: Tensor, top: Tensor, temperature: Temperature) -> tuple[Tensor, Tensor]:
    """Tempered weights exp((l - top) / T) in tiles, and their running sum at the end of each.

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
    tiles = pad(weights, (0, -values.shape[1] % TILE)).view(values.shape[0], -1, TILE)
    return tiles.sum(-1).double().cumsum(1), tiles


def _prefix_length(ends: Tensor, tiles: Tensor, target: Tensor) -> Tensor:
    """Length of the shortest prefix that weighs at least `target`.

    Args:
        ends: float64 [N, K], running sum at the end of each tile.
        tiles: float32 [N, K, TILE], descending.
        target: float64 [N, 1].

    Returns:
        int64 [N, 1], at least 1.
    """
    # Rounding may leave the last sum short of the target: the clamps then keep the row's end.
    full = (ends < target).sum(1, keepdim=True).clamp_(max=ends.shape[1] - 1)
    start = (ends - tiles.sum(-1)).gather(1, full)
    inside = tiles[torch.arange(len(full), device=full.device), full[:, 0]]
    rest = (inside.double().cumsum(1) + start < target).sum(1, keepdim=True)
    return full * TILE + rest.clamp_(max=TILE - 1) + 1
