"""What callers of transformers ask of a forward beside logits: a loss, hidden states, a tuple.

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
    """Whether to return hidden states; None leaves it, and attentions, to the configuration.

    Raises:
        ValueError: what no forward here can return is asked for.
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
    """What a forward returns.

    Args:
        loss: of no dimension, where there were labels.
        logits: [B, L, V], as the network puts them.
        hidden_states: [B, L, D] each: embeddings, then what each layer gave.
        return_dict: whether to name what is there; a tuple of it otherwise.
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
    """Sum of -ln p(label) over the labels that are not -100, in nats, over their count; 0 for none.

    Labels stand at the position of their token. Where the network's output at i predicts token
    i + 1, a row's first token has no output that predicts it, and none behind padding.

    Args:
        config: of the network.
        logits: [B, L, V], as the network puts them.
        labels: integer [B, L], -100 for no loss; None gives None.
        attention_mask: what the forward was given.
        count: labels of all batches that are one step of an optimiser; those of this one if absent.

    Returns:
        Of no dimension, float32 or wider.

    Raises:
        ValueError: labels are not of the shape of the tokens.
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
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # logits would be copied
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, labels.flatten(), reduction="sum")
    counted = torch.as_tensor((labels != -100).sum() if count is None else count)
    return total / counted.to(total.device).clamp(min=1)
