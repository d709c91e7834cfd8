"""The background token frequencies a model predicts without context.

Shapes: V vocabulary.
"""

from typing import Final

import torch
from torch import Tensor

from dlm.measure import ids
from dlm.models.model import Model

LENGTH: Final = 128  # masks on the canvas


@torch.inference_mode()
def background(model: Model) -> Tensor:
    """Mean prediction on a canvas of masks, float32 [V]: f(v) = mean_i p_i(v | v is no stop token).

    The canvas has 128 masks, or as many as the model has positions for. Where attention blocks may
    begin anywhere, all masks form one block.

    Stop tokens have their own mean probability instead: on an empty canvas a model that was
    fine-tuned on padded answers predicts little else, which would make every other token look
    equally rare. Tokens that are never sampled have 0.
    """
    length = min(LENGTH, model.spec.max_length)
    tokens = torch.full((1, length), model.spec.mask_id, device=model.device)
    columns = torch.arange(length, device=model.device)
    hidden = model.hidden(tokens, columns[None], None)
    total = torch.zeros(model.spec.vocab_size, dtype=torch.float32, device=model.device)
    stops, banned = (ids(t, total.device) for t in (model.spec.stop_ids, model.spec.banned))
    ends = torch.zeros_like(total)[stops]
    for some in hidden[0].split(16):  # in chunks, to avoid a float32 copy of every logit
        logits = model.logits(some).float().to(total.device)
        logits[:, banned] = -torch.inf
        ends += logits.softmax(-1)[:, stops].sum(0)
        logits[:, stops] = -torch.inf
        total += logits.softmax(-1).sum(0)
    total[stops] = ends
    return total / length
