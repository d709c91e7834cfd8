"""Plain baselines that the engine is compared with.

Shapes: B rows, L canvas, N positions, V vocabulary.
"""

import torch
from torch import Tensor

from dlm.models.model import Model


def float64_path(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample and score with float64 copies of the logits, as published loops do at each step.

    Samples by Gumbel-max in the form exp(l) / (-ln u)^T of Nie et al. 2025 (LLaDA,
    arXiv:2502.09992), then reads p(sampled) from a full softmax.

    Args:
        logits: [N, V].
        temperature: T; 0 takes the arg max, without noise.

    Returns:
        int64 [N] tokens and float64 [N] probabilities.
    """
    if temperature:
        wide = logits.to(torch.float64)
        noise = torch.rand_like(wide)
        tokens = (wide.exp() / (-torch.log(noise)) ** temperature).argmax(-1)
    else:
        tokens = logits.argmax(-1)
    shares = logits.to(torch.float64).softmax(-1)
    return tokens, shares.gather(-1, tokens[:, None])[:, 0]


def plain_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The least work for a confidence in float32 PyTorch: the maximum and the log-sum-exp."""
    return logits.amax(-1), logits.float().logsumexp(-1)


def quotas(masks: int, steps: int) -> list[int]:
    """Tokens to commit at each step, larger numbers first."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


@torch.inference_mode()
def plain_loop(
    model: Model, prompts: list[list[int]], *, gen_length: int, block_length: int, steps: int
) -> list[list[int]]:
    """Low-confidence decoding at temperature 0, as in LLaDA's `generate`.

    All prompts have the same length. Every step runs a forward pass over all rows, computes the
    logits at all of their positions and a float64 softmax of them, and then commits the most
    confident masks of each row's block, found by `topk`. The mask token itself is never sampled.

    Args:
        model: the network.
        prompts: token ids, all of the same length.
        gen_length: a multiple of `block_length`.
        block_length: tokens in a block.
        steps: a multiple of the number of blocks.

    Returns:
        The generated tokens of each row.
    """
    mask = model.spec.mask_id
    given = torch.tensor(prompts, device=model.device)
    batch, ahead = given.shape
    rows = torch.full((batch, ahead + gen_length), mask, device=model.device)
    rows[:, :ahead] = given
    columns = torch.arange(rows.shape[1], device=model.device)
    blocks = gen_length // block_length
    for block in range(blocks):
        end = ahead + (block + 1) * block_length
        for quota in quotas(block_length, steps // blocks):
            logits = model.logits(model.hidden(rows, columns[None], None)).flatten(0, 1)
            logits[:, mask] = -torch.inf
            tokens, shares = (part.view_as(rows) for part in float64_path(logits, 0.0))
            masked = (rows == mask) & (columns < end)
            confidence = torch.where(masked, shares, -torch.inf)
            chosen = confidence.topk(quota, -1).indices
            rows.scatter_(1, chosen, tokens.gather(1, chosen))
    found: list[list[int]] = rows[:, ahead:].tolist()
    return found
