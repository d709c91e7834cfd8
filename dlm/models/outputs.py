"""Outputs of a forward pass that transformers' callers request: loss, hidden states, a tuple.

Shapes: B rows, L tokens, D model width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput

from dlm.models.families import family_of


def keeps_states(
    config: Any,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    use_cache: bool | None,
) -> bool:
    """Whether to return hidden states.

    None for `output_hidden_states` or `output_attentions` leaves the choice to the configuration.

    Raises:
        ValueError: attention weights or a cache are requested, which no network here returns.
    """
    if config.output_attentions if output_attentions is None else output_attentions:
        raise ValueError("output_attentions must be False, got True: attention gives no weights")
    if use_cache:
        raise ValueError(
            "use_cache must be False, got True: a forward by itself keeps no keys, "
            "generate(cache=...) does"
        )
    if output_hidden_states is None:
        return bool(config.output_hidden_states)
    return output_hidden_states


def output(
    loss: Tensor | None,
    logits: Tensor,
    hidden_states: Sequence[Tensor] | None,
    return_dict: bool,
) -> MaskedLMOutput | tuple[Any, ...]:
    """The output of a forward pass.

    Args:
        loss: a scalar tensor, if there were labels.
        logits: [B, L, V], not shifted.
        hidden_states: [B, L, D] each: the embeddings, then the output of each layer.
        return_dict: whether to return a `MaskedLMOutput`; otherwise a tuple of what is not None.
    """
    kept = None if hidden_states is None else tuple(hidden_states)
    made = MaskedLMOutput(loss=loss, logits=logits, hidden_states=kept)
    return made if return_dict else made.to_tuple()


def masked_loss(
    config: Any,
    logits: Tensor,
    labels: Tensor | None,
    attention_mask: Tensor | None = None,
    count: Tensor | int | None = None,
) -> Tensor | None:
    """Mean of -ln p(label) over all labels except -100, in nats; 0 if there are none.

    A label is at the position of its token. If the network's output at i predicts token i + 1, no
    output predicts the first token of a row, also after left padding, and its label is ignored.

    Args:
        config: of the network.
        logits: [B, L, V], not shifted.
        labels: integer [B, L], -100 for no loss; None returns None.
        attention_mask: the mask of the forward pass.
        count: the divisor: number of labels in all batches of one optimiser step; by default the
            number of labels in this batch.

    Returns:
        A scalar tensor, float32 or wider.

    Raises:
        ValueError: labels do not have the shape of the tokens.
    """
    if labels is None:
        return None
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must be of shape {list(logits.shape[:-1])}, one a token, "
            f"got {list(labels.shape)}"
        )
    labels = labels.to(logits.device, torch.int64)
    if family_of(config).shift:
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            before = F.pad(attention_mask[:, :-1].bool(), (1, 0)).to(labels.device)
            labels = labels.masked_fill(~before, -100)
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # shifting logits would copy them
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, labels.flatten(), reduction="sum")
    counted = torch.as_tensor((labels != -100).sum() if count is None else count)
    return total / counted.to(total.device).clamp(min=1)
