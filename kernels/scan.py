"""One read of the logits: what it leaves of each row, and the statistics made of that.

Shapes: N rows, R rows of a block, V vocabulary, K tiles, S likeliest tokens, C tokens of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.kernels.filters import Cut, filter_cut, likeliest
from dlm.kernels.tiles import LOWEST, PADDING, Temperature, TiledLogits, row_blocks, rows_of


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tokens a law keeps: the top k, then the top p of those. None keeps all."""

    top_k: int | None
    top_p: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """A distribution of every row: softmax((l - m) / T) of the tokens that its filters keep."""

    temperature: Temperature  # above 0
    filters: Filters | None
    partition: Tensor  # float32 [N, 1], Z = sum of exp((l - m) / T) over the kept, once scanned
    cut: Cut | None  # last token kept, once scanned; None keeps every token

    @classmethod
    def of(cls, logits: Tensor, temperature: Temperature, filters: Filters | None) -> "Law":
        """A law of the rows of `logits`, before the scan."""
        value = logits.new_empty((logits.shape[0], 1), dtype=torch.float32)
        cut = Cut(torch.empty_like(value), torch.empty_like(value, dtype=torch.int32))
        return cls(temperature, filters, value, cut if filters else None)

    def dropped(self, values: Tensor, rows: slice) -> Tensor | None:
        """Cut some rows, float32 [R, K W]; bool of that shape, or None if nothing is dropped."""
        if self.cut is None or self.filters is None:
            return None
        temperature = rows_of(self.temperature, rows)
        cut = filter_cut(values, temperature, self.filters.top_k, self.filters.top_p)
        self.cut.value[rows], self.cut.token[rows] = cut.value, cut.token
        ids = torch.arange(values.shape[1], dtype=torch.int32, device=values.device)
        return cut.drops(values, ids)

    def weigh(self, gaps: Tensor, rows: slice, dropped: Tensor | None, out: Tensor) -> Tensor:
        """exp((l - m) / T) of some rows and 0 where dropped, written to `out`; float32 [R, K W]."""
        if isinstance(self.temperature, float) and self.temperature == 1:
            torch.exp(gaps, out=out)
        else:
            torch.div(gaps, rows_of(self.temperature, rows), out=out).exp_()
        return out if dropped is None else out.masked_fill_(dropped, 0.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a scan has to find out. Laws that are the same object are weighed once."""

    drawn: Law | None = None  # what `sampled` follows; None for the arg max
    scored: Law | None = None  # what the statistics describe; None if none is wanted
    ranked: Law | None = None  # the probabilities of the likeliest tokens; None if none is wanted
    top: int = 0  # S
    entropy: bool = False

    @property
    def laws(self) -> list[Law]:
        """Each once, and `scored` last."""
        first = [] if self.drawn is None or self.drawn is self.scored else [self.drawn]
        if self.ranked is not None and self.ranked not in (self.drawn, self.scored):
            first.append(self.ranked)
        return first if self.scored is None else [*first, self.scored]


@dataclass(frozen=True, slots=True)
class Scan:
    """What one read of the logits leaves of each row. What no one asked for stays unset."""

    tiled: TiledLogits
    plan: Plan
    tile_maximum: Tensor  # float32 [N, K]
    tile_mass: Tensor  # float32 [N, K], exp((l - m) / T) of the drawn law over each tile
    entropy: Tensor  # float32 [N], nats
    top_values: Tensor  # float32 [N, S], logits
    top_tokens: Tensor  # int64 [N, S]

    @classmethod
    def of(cls, tiled: TiledLogits, plan: Plan) -> "Scan":
        """Read the logits once, in row blocks."""
        num_rows = tiled.logits.shape[0]

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return tiled.logits.new_empty((num_rows, *shape), dtype=dtype)

        scan = cls(
            tiled,
            plan,
            tile_maximum=empty(tiled.tiles),
            tile_mass=empty(tiled.tiles),
            entropy=empty(),
            top_values=empty(plan.top),
            top_tokens=empty(plan.top, dtype=torch.int64),
        )
        scratch = tiled.scratch(), tiled.scratch()
        for rows in tiled.blocks():
            scan._fill(rows, *scratch)
        return scan

    def _fill(self, rows: slice, scratch: Tensor, weights: Tensor) -> None:
        """Fill some rows. Works in place: a block and its exponentials are all it holds."""
        shape = (-1, self.tiled.tiles, self.tiled.width)
        values = self.tiled.read(rows, scratch)
        weights = weights[: values.shape[0]]
        self.tile_maximum[rows] = values.view(shape).amax(2)
        if self.plan.top:
            self._fill_top(rows, values.view(shape))
        dropped = [law.dropped(values, rows) for law in self.plan.laws]
        values.sub_(self.tile_maximum[rows].amax(1, keepdim=True))
        for law, out in zip(self.plan.laws, dropped, strict=True):
            sums = law.weigh(values, rows, out, weights).view(shape).sum(2)
            law.partition[rows] = sums.sum(1, keepdim=True)
            if law is self.plan.drawn:
                self.tile_mass[rows] = sums
        if self.plan.entropy and self.plan.scored is not None:  # its weights are the last
            partition = self.plan.scored.partition[rows]
            moment = values.mul_(weights).view(shape).sum(2).sum(1, keepdim=True)
            mean = (moment / partition).div_(rows_of(self.plan.scored.temperature, rows))
            self.entropy[rows] = (partition.log() - mean)[:, 0]

    def _fill_top(self, rows: slice, values: Tensor) -> None:
        """Fill the lists of some rows, float32 [R, K, W].

        The S likeliest tokens are in the first S tiles in the order (maximum descending, index
        ascending): each tile before that of another token has a token before it.
        """
        width, ranks = self.tiled.width, self.tile_maximum[rows]
        order = ranks.sort(dim=1, descending=True, stable=True).indices
        tile = order[:, : self.plan.top].sort(dim=1).values
        if tile.shape[1] < self.tiled.tiles:
            values = values.gather(1, tile[:, :, None].expand(-1, -1, width))
        self.top_values[rows], place = likeliest(values.flatten(1), self.plan.top)
        ids = tile.gather(1, place // width) * width + place % width
        self.top_tokens[rows] = ids.clamp_(max=self.tiled.vocabulary - 1)  # rows with NaN only

    @property
    def maximum(self) -> Tensor:
        """m, float32 [N]."""
        return self.tile_maximum.amax(1)

    def arg_max(self) -> Tensor:
        """The likeliest token of each row, the lower id among equals; int64 [N]."""
        tile = self.tile_maximum.argmax(1)
        best = torch.empty_like(tile)
        for rows in row_blocks(tile.shape[0], 2 * self.tiled.width, tile.device):
            values, ids = self.tiled.tile(rows, tile[rows])
            best[rows] = ids.gather(1, values.argmax(1, keepdim=True))[:, 0]
        return best

    def probability(self, law: Law, tokens: Tensor) -> Tensor:
        """p(tokens) of int64 [N]; float32 [N]."""
        return self._exponent(law, tokens).exp_().div_(law.partition)[:, 0]

    def log_probability(self, law: Law, tokens: Tensor) -> Tensor:
        """Return ln p(tokens) of int64 [N]; float32 [N], -inf for tokens of probability 0."""
        return self._exponent(law, tokens).sub_(law.partition.log())[:, 0]

    def top_probabilities(self, law: Law) -> Tensor:
        """Probabilities of `top_tokens`, float32 [N, S]."""
        gaps = self.top_values - self.maximum[:, None]
        return gaps.div_(law.temperature).exp_().div_(law.partition)

    def margin(self, law: Law) -> Tensor:
        """Largest minus second largest probability; float32 [N]."""
        tile, maximum = self.tile_maximum.argmax(1), self.maximum
        second = self.tile_maximum.scatter(1, tile[:, None], PADDING).amax(1)
        if self.tiled.width > 1:
            for rows in row_blocks(tile.shape[0], 2 * self.tiled.width, tile.device):
                inside = self.tiled.tile(rows, tile[rows])[0].topk(2).values[:, 1]
                second[rows] = torch.maximum(second[rows], inside)
        gaps = (second - maximum)[:, None].div_(law.temperature)
        if law.cut is not None:
            # The kept are a prefix of (logit, id): all but one are dropped if it ends at the top.
            alone = law.cut.value == maximum[:, None]
            alone &= law.cut.token == self.arg_max()[:, None]
            gaps.masked_fill_(alone, -torch.inf)
        return -torch.expm1(gaps).div_(law.partition)[:, 0]

    def _exponent(self, law: Law, tokens: Tensor) -> Tensor:
        """(l - m) / T of one token a row, float32 [N, 1]; -inf where the law gives it nothing."""
        values = self.tiled.token(tokens)[:, None]
        gaps = values - self.maximum[:, None]
        out = gaps < LOWEST / 2
        if law.cut is not None:
            out |= law.cut.drops(values, tokens[:, None])
        return gaps.div_(law.temperature).masked_fill_(out, -torch.inf)
