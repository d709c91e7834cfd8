"""The masked-diffusion training objective.

Shapes: B rows, L tokens, M masked positions, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional


def mask_counts(lengths: Tensor, level: Tensor) -> Tensor:
    """How many of `lengths` positions to mask at noise level `level`: floor(level * n) + 1.

    Args:
        lengths: int64 [B], maskable positions of each row, at least 1.
        level: float [B] in [0, 1).

    Returns:
        int64 [B] in [1, lengths].
    """
    return torch.minimum((level * lengths).long() + 1, lengths)


def harmonic_numbers(most: int) -> Tensor:
    """H_k = 1 + 1/2 + ... + 1/k for k in 1 to `most`, float64."""
    return (1.0 / torch.arange(1, most + 1, dtype=torch.float64)).cumsum(0)


def harmonic_counts(lengths: Tensor, level: Tensor) -> Tensor:
    """How many of `lengths` positions to mask: k with probability (1 / k) / H_n.

    This is the k with H_(k - 1) <= level H_n < H_k; see `harmonic_numbers`.

    Args:
        lengths: int64 [B], n, maskable positions of each row, at least 1.
        level: float64 [B] in [0, 1), uniform.

    Returns:
        int64 [B] in [1, lengths].
    """
    harmonic = harmonic_numbers(int(lengths.max()))
    found = torch.searchsorted(harmonic, level * harmonic[lengths - 1], right=True) + 1
    return torch.minimum(found, lengths)


def mask_exactly(maskable: Tensor, count: Tensor, noise: Tensor) -> Tensor:
    """Mask `count` maskable positions of each row, chosen uniformly.

    Args:
        maskable: bool [B, L].
        count: int64 [B], at most the maskable positions of the row.
        noise: float [B, L], independent uniforms.

    Returns:
        bool [B, L].
    """
    rank = noise.masked_fill(~maskable, float("inf")).argsort(-1).argsort(-1)
    return maskable & (rank < count[:, None])


def stratified_levels(rows: int, offset: Tensor) -> Tensor:
    """Spread `rows` noise levels evenly over [0, 1) from one offset; each alone is uniform."""
    return (offset + torch.arange(rows, dtype=offset.dtype) / rows) % 1.0


def masked_diffusion_loss(logits: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Upper bound on the negative log-likelihood per response token, nats.

    With k of n response positions masked uniformly, E[(n / k) sum_masked -ln p] bounds
    -ln p(response | prompt). Dividing by n leaves the mean over the masked positions
    (Nie et al. 2025, arXiv:2502.09992, eq. 5, in its exactly-k form).

    Args:
        logits: [M, V], at the masked positions in row order.
        targets: int64 [B, L].
        masked: bool [B, L] with M true, at least one in each row.

    Returns:
        float32 scalar, the mean over rows.
    """
    loss = functional.cross_entropy(logits.float(), targets[masked], reduction="none")
    weight = (1.0 / masked.sum(-1, keepdim=True)).expand(masked.shape)[masked]
    return (loss * weight).sum() / masked.shape[0]
