"""Certainty-forcing distillation: masks and loss (dParallel; Chen et al. 2025, arXiv:2509.26488).

The model is trained on its own full-length outputs, so that it becomes certain of many tokens
early. It sees the prompt and the earlier blocks, and later blocks are masked. One block of the
response is masked at random in one view, and the complement of that mask in a second view; both
views are trained on at once.

Shapes: B rows, L tokens, M masked positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Views:
    """Two masked copies of the same rows; their masks partition one block of each row."""

    tokens: Tensor  # int64 [2, B, L]
    masked: Tensor  # bool [2, B, L], positions to learn: masked in the active block


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one pair of views, nats."""

    total: Tensor  # float scalar, differentiable
    cross_entropy: Tensor  # per masked token, mean of both views
    entropy: Tensor  # at the temperature, over correct predictions; mean of both views
    right: Tensor  # share of the masked tokens that are predicted correctly


def block_numbers(
    start: Tensor, end: Tensor, length: int, *, block_length: int | None, block_size: int | None
) -> Tensor:
    """The block that decoding fills each response position in; -1 outside the response.

    Blocks are counted from the start of the response. With block-causal attention they are counted
    from the start of the attention block that holds it. See `dlm.canvas.Canvas`.

    Args:
        start: int64 [B], first response position of each row.
        end: int64 [B], one past the last response position.
        length: L.
        block_length: tokens of a block; None for one block.
        block_size: attention block size, a multiple of `block_length`; None unless block-causal.

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
    """Draw one of the blocks of each row, uniformly.

    The released code counts floor(n / K) + 1 blocks, so that its last block may be empty. Here
    every block that may be drawn holds a position.

    Args:
        block: int64 [B, L], from `block_numbers`.
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
    """Mask the active block at random in the first view, and the rest of it in the second.

    Earlier blocks stay visible. Later blocks are masked, but not learned.

    Args:
        rows: int64 [B, L], prompt and response.
        block: int64 [B, L], from `block_numbers`.
        active: int64 [B], the active block of each row.
        uniform: float [B, L] in [0, 1).
        mask_id: of the model.
        ratio: probability that the first view masks a position; 1/2 in the paper.
    """
    inside = block == active[:, None]
    first = inside & (uniform < ratio)
    masked = torch.stack((first, inside & ~first))
    later = block > active[:, None]
    return Views(rows.masked_fill(masked | later, mask_id), masked)


def certainty_loss(
    logits: Tensor, targets: Tensor, second: Tensor, *, temperature: float, weight: float
) -> Loss:
    """Cross-entropy, plus the entropy of predictions that are already correct.

    sum over both views of mean_M -ln p(target) + weight * mean_{i in M: argmax l_i = target_i}
    H(softmax(l_i / temperature)). The mean over no positions is 0. Wrong predictions have no
    entropy term: it would make the model certain of tokens that are not on its trajectory.

    Args:
        logits: [M, V], at the masked positions of both views.
        targets: int64 [M].
        second: bool [M], True for positions of the second view.
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
    """Mean of the chosen values; 0, with a gradient of 0, if none is chosen."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
