"""One read of the logits: the per-tile results, and the statistics computed from them.

Of each tile the read keeps the maximum m_k and sums of exp((l - m_k) / T), relative to the tile's
own maximum: a block may be a part of a row, which stays in the cache from its first use to its
last. With the row's maximum m, the sums of the row use the factors f_k = exp((m_k - m) / T).

Shapes: N rows, R rows and C tiles of a block, V vocabulary, K tiles, W tokens of a tile, S
likeliest tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

import torch
from torch import Tensor

from dlm.kernels.filters import Cut, filter_cut, leaders
from dlm.kernels.tiles import (
    LOWEST,
    PADDING,
    Temperature,
    TiledLogits,
    row_blocks,
    rows_of,
    tile_count,
)

_FAINTEST: Final = -87.0
"""Lowest exponent of a weight. Below it `exp` gives subnormal numbers, which take a CPU many times
as long and are negligible next to the 1 of a tile's maximum."""
_NOTHING: Final = 1e-29
"""Nats of entropy: more than the weights of `_FAINTEST` of 7 million tokens add up to."""
_TILE_COST: Final = 6
"""Elements held for one token of one tile per row: its value, ids in int64 and their copies."""


def length(part: slice) -> int:
    """Number of rows or tiles."""
    size: int = part.stop - part.start
    return size


def some(each: Tensor, rows: slice, part: slice) -> Tensor:
    """The part of [N, K] for some tiles of some rows."""
    return each[rows] if length(part) == each.shape[1] else each[rows, part]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tokens a law keeps: the top k, the top p of those, and what min-p leaves of these.

    None keeps all.
    """

    top_k: int | None
    top_p: float | None
    min_p: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """A distribution of every row: softmax((l - m) / T) over the tokens that its filters keep."""

    temperature: Temperature  # above 0; a number or float32 [N, 1]
    speed: Tensor | None  # float32, 1 / T, a scalar or [N, 1]; None is 1
    filters: Filters | None
    mass: Tensor  # float32 [N, K], sum of exp((l - m) / T) over kept tokens, after the scan
    partition: Tensor  # float32 [N, 1], Z, the sum of `mass`, after the scan
    cut: Cut | None  # what is kept, after the scan; None keeps every token

    @classmethod
    def of(cls, logits: Tensor, temperature: Temperature, filters: Filters | None) -> "Law":
        """A law of the rows of `logits`, before the scan."""
        num_rows, vocabulary = logits.shape
        mass = logits.new_empty((num_rows, tile_count(vocabulary)), dtype=torch.float32)
        value = torch.empty_like(mass[:, :1])
        cut = Cut(value, torch.empty_like(value, dtype=torch.int32)) if filters else None
        speed = None
        if isinstance(temperature, Tensor) or temperature != 1:
            speed = torch.as_tensor(1 / temperature, dtype=torch.float32)
        return cls(temperature, speed, filters, mass, torch.empty_like(value), cut)

    def find_cut(self, values: Tensor, rows: slice) -> Cut | None:
        """Where the filters cut some whole rows, float32 [R, K, W]; None without filters."""
        if self.cut is None or self.filters is None:
            return None
        by = self.filters
        temperature = rows_of(self.temperature, rows)
        cut = filter_cut(values.flatten(1), temperature, by.top_k, by.top_p, by.min_p)
        self.cut.value[rows], self.cut.token[rows] = cut.value, cut.token
        return cut

    def speeds(self, rows: slice) -> Tensor | None:
        """1 / T of some rows, a scalar or [R, 1]; None is 1."""
        if self.speed is None or not self.speed.dim():
            return self.speed
        return self.speed[rows]


def exponents(gaps: Tensor, speed: Tensor | None, out: Tensor) -> Tensor:
    """Write (l - m) / T, at least `_FAINTEST`, to `out`; float32, and the speed broadcasts."""
    if speed is not None:
        gaps = torch.mul(gaps, speed, out=out)
    return torch.clamp(gaps, min=_FAINTEST, out=out)


@dataclass(frozen=True)
class Plan:
    """What a scan computes. Laws that are the same object are weighed once."""

    drawn: Law | None = None  # distribution of `sampled`; None for the arg max
    scored: Law | None = None  # distribution of statistics and lists; None if none is wanted
    top: int = 0  # S
    entropy: bool = False

    @cached_property
    def laws(self) -> list[Law]:
        """Each law once, `scored` last."""
        first = [] if self.drawn is None or self.drawn is self.scored else [self.drawn]
        return first if self.scored is None else [*first, self.scored]

    @cached_property
    def plain_laws(self) -> list[Law]:
        """The laws without filters."""
        return [law for law in self.laws if law.cut is None]

    @property
    def whole(self) -> bool:
        """Whether filters or a list need a whole row at a time."""
        return self.top > 0 or any(law.cut is not None for law in self.laws)


@dataclass(frozen=True, slots=True)
class Scan:
    """Results of one read of the logits, per row. What was not requested stays unset."""

    tiled: TiledLogits
    plan: Plan
    tile_maximum: Tensor  # float32 [N, K]
    tile_moment: Tensor  # float32 [N, K], sum of x exp(x), x = (l - m) / T, of the scored law
    top_values: Tensor  # float32 [N, S], logits
    top_tokens: Tensor  # int64 [N, S]

    @classmethod
    def of(cls, tiled: TiledLogits, plan: Plan) -> "Scan":
        """Read the logits once, in blocks."""
        num_rows, tiles = tiled.logits.shape[0], tiled.tiles

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return tiled.logits.new_empty(shape, dtype=dtype)

        scan = cls(
            tiled,
            plan,
            tile_maximum=empty(num_rows, tiles),
            tile_moment=empty(num_rows, tiles if plan.entropy else 0),
            top_values=empty(num_rows, plan.top),
            top_tokens=empty(num_rows, plan.top, dtype=torch.int64),
        )
        count = 1 if len(plan.laws) < 2 and not plan.entropy else 2
        # A later race needs as much memory as two blocks.
        share = count if plan.drawn is None and not plan.whole else 1
        blocks = list(tiled.blocks(share, plan.whole))
        shapes = [(length(rows), length(part), tiled.width) for rows, part in blocks]
        scratch = empty(count, max(map(prod, shapes), default=0)).unbind()
        views = {
            shape: [each[: prod(shape)].view(shape) for each in scratch] for shape in set(shapes)
        }
        for (rows, part), shape in zip(blocks, shapes, strict=True):
            scan._fill(rows, part, views[shape][0], views[shape][-1])
        scan._gather()
        return scan

    def _fill(self, rows: slice, part: slice, values: Tensor, spare: Tensor) -> None:
        """Fill some tiles of some rows, with sums relative to the maximum of each tile.

        Works in place: it holds only the block, and its weights if the block is needed after them.
        """
        self.tiled.read(rows, part, values)
        maximum = torch.amax(values, 2, out=some(self.tile_maximum, rows, part))
        if self.plan.top:
            ranked, ids = leaders(values.flatten(1), self.plan.top)
            self.top_values[rows] = ranked
            self.top_tokens[rows] = ids.clamp_(max=self.tiled.vocabulary - 1)  # only after a NaN
        if self.plan.whole:
            cuts = [law.find_cut(values, rows) for law in self.plan.laws]
            for law, cut in zip(self.plan.laws, cuts, strict=True):
                if cut is not None:
                    self._fill_kept(law, cut, rows, values, spare)
        if self.plan.plain_laws:
            self._fill_plain(rows, part, values.sub_(maximum[:, :, None]), spare)

    def _fill_plain(self, rows: slice, part: slice, gaps: Tensor, spare: Tensor) -> None:
        """Fill some tiles of some rows for the laws without filters; overwrites `gaps`."""
        laws = self.plan.plain_laws
        for law in laws:
            speed = law.speeds(rows)
            speed = speed[..., None] if speed is not None and speed.dim() else speed
            powers = exponents(gaps, speed, gaps if law is laws[-1] else spare)
            measured = law is self.plan.scored and self.plan.entropy
            weights = torch.exp(powers, out=spare if measured else powers)
            torch.sum(weights, 2, out=some(law.mass, rows, part))
            if measured:
                torch.sum(powers.mul_(weights), 2, out=some(self.tile_moment, rows, part))

    def _fill_kept(self, law: Law, cut: Cut, rows: slice, values: Tensor, spare: Tensor) -> None:
        """Fill some whole rows, float32 [R, K, W], for a law that drops everything after the cut.

        Most tiles have no kept token. The CPU skips them; on a GPU counting them would sync.
        """
        maximum, mass = self.tile_maximum[rows], law.mass[rows]
        if values.device.type == "cpu":
            row, tile = (maximum >= cut.value).nonzero(as_tuple=True)
        else:
            place = torch.arange(maximum.numel(), device=values.device)
            row, tile = place // self.tiled.tiles, place % self.tiled.tiles
        block, width = values[row, tile], self.tiled.width
        lanes = torch.arange(width, dtype=torch.int32, device=values.device)
        start = (tile.int() * width)[:, None]  # shift the cut: ids of the block would be large
        dropped = Cut(cut.value[row], cut.token[row] - start).drops(block, lanes)
        gaps = block.sub_(maximum[row, tile][:, None])
        speed = law.speeds(rows)
        speed = speed[row] if speed is not None and speed.dim() else speed
        powers = exponents(gaps, speed, gaps)
        weights = torch.exp(powers, out=spare.flatten(0, 1)[: len(powers)])
        mass.zero_()[row, tile] = weights.masked_fill_(dropped, 0.0).sum(1)
        if law is self.plan.scored and self.plan.entropy:
            self.tile_moment[rows].zero_()[row, tile] = powers.mul_(weights).sum(1)

    def _gather(self) -> None:
        """Rescale all sums to the maximum of the row."""
        gaps = self.tile_maximum - self.maximum[:, None]
        for law in self.plan.laws:
            # Kept finite, so that a tile of mass 0 has a moment of 0.
            powers = (gaps / law.temperature).clamp_(min=LOWEST)
            factors = powers.exp()
            torch.sum(law.mass.mul_(factors), 1, keepdim=True, out=law.partition)
            if law is self.plan.scored and self.plan.entropy:
                self.tile_moment.mul_(factors).addcmul_(powers, law.mass)

    @property
    def entropy(self) -> Tensor:
        """H = ln Z - sum x exp(x) / Z with x = (l - m) / T of the scored law, float32 [N], nats."""
        law = self.plan.scored
        assert law is not None
        mean = self.tile_moment.sum(1, keepdim=True) / law.partition
        mean.masked_fill_(mean > -_NOTHING, 0.0)
        return (law.partition.log() - mean)[:, 0]

    @property
    def maximum(self) -> Tensor:
        """m, float32 [N]."""
        return self.tile_maximum.amax(1)

    def arg_max(self) -> Tensor:
        """The likeliest token of each row, the lower id among equals; int64 [N]."""
        tile = self.tile_maximum.argmax(1)
        best = torch.empty_like(tile)
        for rows in row_blocks(tile.shape[0], _TILE_COST * self.tiled.width, tile.device):
            values, ids = self.tiled.tile(rows, tile[rows])
            best[rows] = ids.gather(1, values.argmax(1, keepdim=True))[:, 0]
        return best

    def probability(self, law: Law, tokens: Tensor) -> Tensor:
        """p(tokens) for int64 [N]; float32 [N]."""
        return self._exponent(law, tokens).exp_().div_(law.partition)[:, 0]

    def log_probability(self, law: Law, tokens: Tensor) -> Tensor:
        """Return ln p(tokens) for int64 [N]; float32 [N], -inf for tokens of probability 0."""
        return self._exponent(law, tokens).sub_(law.partition.log())[:, 0]

    def top_probabilities(self, law: Law) -> Tensor:
        """Probabilities of `top_tokens`, float32 [N, S]."""
        gaps = (self.top_values - self.maximum[:, None]).div_(law.temperature)
        if law.cut is not None:
            gaps.masked_fill_(law.cut.drops(self.top_values, self.top_tokens), -torch.inf)
        return gaps.exp_().div_(law.partition)

    def margin(self, law: Law) -> Tensor:
        """Largest minus second largest probability; float32 [N]."""
        tile, maximum = self.tile_maximum.argmax(1), self.maximum
        second = self.tile_maximum.scatter(1, tile[:, None], PADDING).amax(1)
        if self.tiled.width > 1:
            for rows in row_blocks(tile.shape[0], _TILE_COST * self.tiled.width, tile.device):
                inside = self.tiled.tile(rows, tile[rows])[0].topk(2).values[:, 1]
                second[rows] = torch.maximum(second[rows], inside)
        gaps = (second - maximum)[:, None].div_(law.temperature)
        if law.cut is not None:
            # Kept tokens are a prefix of (logit, id): if it ends at the top, only one is kept.
            alone = law.cut.value == maximum[:, None]
            alone &= law.cut.token == self.arg_max()[:, None]
            alone |= second[:, None] < law.cut.value
            gaps.masked_fill_(alone, -torch.inf)
        return -torch.expm1(gaps).div_(law.partition)[:, 0]

    def _exponent(self, law: Law, tokens: Tensor) -> Tensor:
        """(l - m) / T of one token per row, float32 [N, 1]; -inf if the law gives it no mass."""
        values = self.tiled.token(tokens)[:, None]
        gaps = values - self.maximum[:, None]
        out = gaps < LOWEST / 2
        if law.cut is not None:
            out |= law.cut.drops(values, tokens[:, None])
        return gaps.div_(law.temperature).masked_fill_(out, -torch.inf)
