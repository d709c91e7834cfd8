"""Exact categorical sampling as a race of exponential clocks, in two heats.

Shapes: N rows, R rows of a block, V vocabulary, K tiles, W tokens of a tile.
"""

import torch
from torch import Tensor

from dlm.kernels.filters import Cut
from dlm.kernels.noise import TILE_RACE, TOKEN_RACE, NoiseStream, exponential_from_bits
from dlm.kernels.tiles import PADDING, TILE, Temperature, TiledLogits, row_blocks, rows_of

# A heat holds about eight int64 temporaries per contestant of half that many words; blocks are
# smaller by this factor.
_HEAT_COST = 8


def race(mass: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Draw an index with probability proportional to `mass`.

    argmax_i mass_i / E_i with E_i standard exponential: the Gumbel-max rule without its logarithms,
    which would lose digits. Mass 0 never wins while any mass is positive.

    Args:
        mass: float32 [N, C], non-negative.
        high: int64 [N, C], high halves of 64 random bits each.
        low: int64 [N, C], low halves.

    Returns:
        int64 [N].
    """
    return (mass / exponential_from_bits(high, low)).argmax(1)


def race_tiles(mass: Tensor, noise: NoiseStream) -> Tensor:
    """First heat: the tile of each row.

    Args:
        mass: float32 [N, K], sum of exp((logit - maximum) / T) over each tile.
        noise: The noise of the N rows.

    Returns:
        int64 [N].
    """
    num_rows, tiles = mass.shape
    if tiles == 1:
        return torch.zeros(num_rows, dtype=torch.int64, device=mass.device)
    winner = torch.empty(num_rows, dtype=torch.int64, device=mass.device)
    index = torch.arange((tiles + 1) // 2, device=mass.device)[None]
    for rows in row_blocks(num_rows, _HEAT_COST * tiles, mass.device):
        high, low = noise[rows].words(TILE_RACE, index)
        winner[rows] = race(mass[rows], high[:, :tiles], low[:, :tiles])
    return winner


def race_tokens(
    tiled: TiledLogits, tile: Tensor, temperature: Temperature, cut: Cut | None, noise: NoiseStream
) -> Tensor:
    """Second heat: the token inside the chosen tile of each row.

    Exact by composition: P(tile) P(token | tile) = P(token).

    Args:
        tiled: Logits of N rows.
        tile: int64 [N], winners of the first heat.
        temperature: Above 0, one for all rows or one per row.
        cut: What the filters keep, or None for every token.
        noise: The noise of the N rows.

    Returns:
        int64 [N], token ids.
    """
    device, width = tile.device, tiled.width
    winner = torch.empty_like(tile)
    pairs = torch.arange((width + 1) // 2, device=device)[None]
    for rows in row_blocks(tile.shape[0], _HEAT_COST * width, device):
        values, ids = tiled.tile(rows, tile[rows])
        if cut is not None:
            values.masked_fill_(cut[rows].drops(values, ids), PADDING)
        gap = values - values.amax(1, keepdim=True)
        mass = gap.div_(rows_of(temperature, rows)).exp_()
        index = tile[rows, None] * (TILE // 2) + pairs
        high, low = noise[rows].words(TOKEN_RACE, index)
        local = race(mass, high[:, :width], low[:, :width])
        winner[rows] = ids.gather(1, local[:, None])[:, 0]
    return winner
