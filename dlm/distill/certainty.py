"""Certainty-forcing distillation: masks and loss (dParallel; Chen et al. 2025, arXiv:2509.26488).

A model learns its own full-length decodings again, so that it is sure of many tokens early. With
the prompt and the blocks in front in view and the blocks behind masked, one block of the response
is masked at random, and once more the other way round; both views are trained on at once.

Shapes: B rows, L tokens, M masked positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Views:
    """The same rows under two masks that share out one block of each."""

    tokens: Tensor  # int64 [2, B, L]
    masked: Tensor  # bool [2, B, L], positions to learn: masked, and in the active block


@dataclass(frozen=True, slots=True)
class Loss:
    """What one pair of views costs, nats."""

    total: Tensor  # float scalar, differentiable
    cross_entropy: Tensor  # of a masked token, mean of both views
    entropy: Tensor  # at the temperature, where the prediction is right; mean of both views
    right: Tensor  # share of the masked tokens that are predicted right


def block_numbers(
    start: Tensor, end: Tensor, length: int, *, block_length: int | None, block_size: int | None
) -> Tensor:
    """Number of the block that decoding fills a response position in, -1 elsewhere.

    Blocks are counted from where the response starts; where attention is block-causal, from the
    start of the attention block that holds it. See `dlm.canvas.Canvas`.

    Args:
        start: int64 [B], first response position of each row.
        end: int64 [B], one past its last.
        length: L.
        block_length: tokens of a block; None for one block.
        block_size: of block-causal attention, a multiple of `block_length`.

    Returns:
        int64 [B, L].
    """
    place = torch.arange(length)[None]
    inside = (place >= start[:, None]) & (place < end[:, None])
    origin = start if block_size is None else start - start % block_size
    number = (
        torch.zeros_like(place)
        if block_length is None
        else ((place - origin[:, None]).div(block_length, rounding_mode="floor"))
    )
    return torch.where(inside, number, -1)


def draw_blocks(block: Tensor, uniform: Tensor) -> Tensor:
    """One of the blocks of each row, all alike.

    The released code counts floor(n / K) + 1 blocks, so that its last one may be empty; here every
    block drawn holds a position.

    Args:
        block: int64 [B, L], what `block_numbers` gave.
        uniform: float [B] in [0, 1).

    Returns:
        int64 [B].
    """
    last = block.amax(-1)
    first = block.masked_fill(block < 0, torch.iinfo(block.dtype).max).amin(-1)
    count = last - first + 1
    return first + torch.minimum((uniform * count).long(), count - 1)


def complementary_views(
    rows: Tensor, block: Tensor, active: Tensor, uniform: Tensor, *, mask_id: int, ratio: float
) -> Views:
    """Mask the active block at random, in the second view where the first one does not.

    Blocks in front of it stay, blocks behind it are masked and not learned.

    Args:
        rows: int64 [B, L], prompt and response.
        block: int64 [B, L], what `block_numbers` gave.
        active: int64 [B], a block of each row.
        uniform: float [B, L] in [0, 1).
        mask_id: of the model.
        ratio: probability of being masked in the first view; 1/2 in the paper.
    """
    inside = block == active[:, None]
    first = inside & (uniform < ratio)
    masked = torch.stack((first, inside & ~first))
    later = block > active[:, None]
    return Views(rows.masked_fill(masked | later, mask_id), masked)


def certainty_loss(
    logits: Tensor, targets: Tensor, second: Tensor, *, temperature: float, weight: float
) -> Loss:
    """Cross-entropy, and the entropy of predictions that are right already.

    sum over both views of mean_M -ln p(target) + weight * mean_{i in M: argmax l_i = target_i}
    H(softmax(l_i / temperature)). The mean over nothing is 0. An entropy at a wrong prediction
    would make the model sure of what is not on its trajectory: such positions get none of it.

    Args:
        logits: [M, V], at the masked positions of both views.
        targets: int64 [M].
        second: bool [M], whether a position is one of the second view.
        temperature: of the entropy; 1/2 in the paper.
        weight: of the entropy; 2 for LLaDA, 1 for Dream.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    surprise = functional.cross_entropy(wide, targets, reduction="none")
    log_p = (wide / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    right = wide.argmax(-1) == targets
    parts = [
        (mean_where(surprise, view), mean_where(entropy, view & right))
        for view in (~second, second)
    ]
    total = sum((c + weight * h for c, h in parts), start=wide.new_zeros(()))
    cross, sure = (torch.stack(part).detach().mean() for part in zip(*parts, strict=True))
    return Loss(total, cross, sure, right.to(wide.dtype).mean())


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0, with a gradient of 0, where there is none."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
