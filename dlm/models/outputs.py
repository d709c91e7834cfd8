"""What callers of transformers ask of a forward beside logits: a loss, hidden states, a tuple.

Shapes: B rows, L tokens, D model width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

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
    """Whether to return the hidden states of every layer; None leaves it to the configuration.

    Raises:
        ValueError: what no forward here can return is asked for.
    """
    if output_attentions:
        raise ValueError(
            "output_attentions must be False: attention here gives no weights, "
            f"got {output_attentions!r}"
        )
    if use_cache:
        raise ValueError(
            "use_cache must be False: a forward by itself keeps no keys, generate(cache=...) "
            f"does, got {use_cache!r}"
        )
    return bool(
        config.output_hidden_states if output_hidden_states is None else output_hidden_states
    )


def output(
    config: Any,
    logits: Tensor,
    labels: Tensor | None,
    hidden_states: Sequence[Tensor] | None,
    return_dict: bool | None,
) -> MaskedLMOutput | tuple[Any, ...]:
    """What a forward returns.

    Args:
        config: of the network.
        logits: [B, L, V], as the network puts them.
        labels: int64 [B, L], the token of each position, or -100 for no loss there.
        hidden_states: [B, L, D] each: embeddings, then what each layer gave.
        return_dict: False for a tuple of what is there.

    Raises:
        ValueError: labels are not of the shape of the tokens.
    """
    made = MaskedLMOutput(
        loss=None if labels is None else masked_loss(config, logits, labels),
        logits=logits,
        hidden_states=None if hidden_states is None else tuple(hidden_states),
    )
    return made.to_tuple() if return_dict is False else made


def masked_loss(config: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -ln p(label) over the labels that are not -100, in nats; float32.

    Where the network's output at i predicts token i + 1, labels are moved to it: no label belongs
    anywhere else than to the token of its own position.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must be of shape {list(logits.shape[:-1])}, one a token, "
            f"got {list(labels.shape)}"
        )
    if family_of(config).shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
