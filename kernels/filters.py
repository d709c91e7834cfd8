"""Top-k and top-p as one bound a row, so that a streamed pass can apply them.

Shapes: N rows, V vocabulary, S sorted tokens, W tokens of a tile.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.kernels.tiles import TILE


@dataclass(frozen=True, slots=True)
class Cut:
    """The last token that survives a filter, in the order (logit descending, id ascending)."""

    value: Tensor  # float32 [N, 1]
    token: Tensor  # int64 [N, 1]

    def __getitem__(self, rows: slice) -> "Cut":
        return Cut(self.value[rows], self.token[rows])

    def drops(self, values: Tensor, ids: Tensor) -> Tensor:
        """Whether tokens `ids` with logits `values` come after the cut; bool of that shape."""
        return (values < self.value) | ((values == self.value) & (ids > self.token))


def filter_cut(values: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Cut:
    """Where top-k, and then top-p among its survivors, cut the tempered distribution.

    Top-k keeps the k likeliest tokens; top-p keeps the shortest prefix of those whose share of
    their mass is at least p (Holtzman et al. 2020, arXiv:1904.09751). Among equal logits the lower
    id is kept, so exactly the counted number survives.

    Args:
        values: float32 [N, V], finite logits.
        temperature: Above 0.
        top_k: At least 1, or None.
        top_p: In (0, 1], or None.

    Returns:
        The cut of each row.
    """
    if top_k is not None and top_k < values.shape[1]:
        ranked = values.topk(top_k).values
    else:
        ranked = values.sort(dim=1, descending=True).values
    if top_p is None:
        count = torch.full_like(ranked[:, :1], ranked.shape[1], dtype=torch.int64)
    else:
        weights = (ranked - ranked[:, :1]).div_(temperature).exp_()
        count = _prefix_length(weights, top_p)
    last = ranked.gather(1, count - 1)
    ties_kept = count - (ranked > last).sum(1, keepdim=True)
    del ranked
    seen = (values == last).cumsum(1, dtype=torch.int32)
    return Cut(last, torch.searchsorted(seen, ties_kept.int()))


def _prefix_length(weights: Tensor, share: float) -> Tensor:
    """Length of the shortest prefix that holds `share` of the weight of each row.

    Sums run over tiles first: a float32 running sum over V would lose the whole tail, and float64
    is affordable only for one tile.

    Args:
        weights: float32 [N, S], descending.
        share: In (0, 1].

    Returns:
        int64 [N, 1], in [1, S].
    """
    size = weights.shape[1]
    tiles = pad(weights, (0, -size % TILE)).unflatten(1, (-1, TILE))
    ends = tiles.sum(-1).double().cumsum(1)
    target = share * ends[:, -1:]
    # Rounding may leave the last sum short of its own share: the clamps then keep the row's end.
    full = (ends < target).sum(1, keepdim=True).clamp_(max=tiles.shape[1] - 1)
    start = pad(ends, (1, 0)).gather(1, full)
    inside = tiles.take_along_dim(full[:, :, None], 1)[:, 0].double().cumsum(1).add_(start)
    rest = (inside < target).sum(1, keepdim=True).clamp_(max=TILE - 1)
    return (full * TILE + rest + 1).clamp_(max=size)
