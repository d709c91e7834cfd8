"""Masked language models of transformers, such as BERT, as mask predictors.

They were trained to predict masked tokens from both sides, without a noise level, so a decoder can
use them as they are (Wang and Cho 2019, arXiv:1902.04094).

Shapes: B rows, L tokens, Q queries, N positions, D model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dlm.cache import View
from dlm.models.int8 import check_move
from dlm.models.spec import ModelSpec
from dlm.models.weights import refuse_adapted
from dlm.options import integer

PROJECTIONS = {
    "albert": ("predictions",),
    "bert": ("cls",),
    "camembert": ("lm_head",),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "electra": ("generator_predictions", "generator_lm_head"),
    "ernie": ("cls",),
    "modernbert": ("head", "decoder"),
    "roberta": ("lm_head",),
    "roberta-prelayernorm": ("lm_head",),
    "xlm-roberta": ("lm_head",),
}
"""Modules that turn the base model's hidden states into logits, in order, by model type.

These families take positions from `position_ids` alone and accept a 4-D attention mask."""

AFTER_PADDING = {"camembert", "roberta", "roberta-prelayernorm", "xlm-roberta"}
"""Families whose first position is row `pad_token_id` + 1 of the table of positions."""

OTHER_HEADS = (
    r"(^|\.)pooler\.",
    r"(^|\.)seq_relationship\.",
    r"(^|\.)sop_classifier\.",
    r"(^|\.)position_ids$",
)
"""Patterns of weights in released checkpoints that a masked language model does not use."""


class Encoder(nn.Module):
    """A masked language model of transformers as a `dlm.models.model.Network`.

    For model types in `PROJECTIONS`, the vocabulary projection is computed only at the positions
    that need it. For any other, `states` returns the logits of all positions and `project` returns
    them unchanged, which costs more. Such a network takes only whole rows, without a mask per
    query.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        check_config(network.config)
        self.network = network
        self.config = network.config
        self.family = network.config.model_type
        self.projection = PROJECTIONS.get(self.family)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        check_move(self, fn)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        """The module whose `weight` is the embedding."""
        module: nn.Module = self.network.get_input_embeddings()
        return module

    def get_output_embeddings(self) -> nn.Module | None:
        """The vocabulary projection."""
        module: nn.Module | None = self.network.get_output_embeddings()
        return module

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Save the network as transformers does.

        Raises:
            ValueError: its layers hold an adapter.
        """
        refuse_adapted(self)
        self.network.save_pretrained(*args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        """The output of the wrapped network."""
        return self.network(*args, **options)

    def states(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D], see `dlm.models.model.Network`.

        Raises:
            ValueError: a cache is given; or a mask per query, for a model type not in
                `PROJECTIONS`.
        """
        if cache is not None:
            raise ValueError(f"cache must be 'none' for {self.family}: its networks keep no keys")
        if self.projection is None:
            return self.all_logits(tokens, attention_mask)
        mask: Any = attention_mask
        if mask is not None and mask.dim() == 4 and self.family == "modernbert":
            near = within(positions, self.config.sliding_window)
            mask = {"full_attention": mask, "sliding_attention": both(mask, near)}
        out = self.network.base_model(
            tokens, attention_mask=mask, position_ids=positions + first_position(self.config)
        )
        return torch.as_tensor(out.last_hidden_state)

    def all_logits(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Logits [B, L, V] of whole rows.

        Raises:
            ValueError: the mask differs between queries, as where a decoder adds queries.
        """
        mask = None if attention_mask is None else padding_mask(attention_mask)
        if attention_mask is not None and mask is None:
            raise ValueError(
                f"a network of {self.family} takes whole rows only: decoders that add queries with "
                f"an attention mask of their own need one of {', '.join(PROJECTIONS)}"
            )
        return torch.as_tensor(self.network(input_ids=tokens, attention_mask=mask).logits)

    def project(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D]."""
        for name in self.projection or ():
            states = getattr(self.network, name)(states)
        return states


def within(positions: Tensor, distance: int) -> Tensor:
    """Whether a query at i sees a key at j: |i - j| <= distance, bool [B, 1, L, L].

    Args:
        positions: int64 [B, L], of the queries and of the keys.
        distance: in tokens.
    """
    return ((positions[:, :, None] - positions[:, None]).abs() <= distance)[:, None]


def both(mask: Tensor, allowed: Tensor) -> Tensor:
    """The 4-D mask, boolean or additive, that also hides what is not allowed."""
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


def padding_mask(mask: Tensor) -> Tensor | None:
    """The mask as int64 [B, L], 0 at padding; None if it differs between queries.

    Args:
        mask: [B, L], [B, 1, 1, L] or [B, 1, Q, L]; boolean or additive.
    """
    if mask.dim() == 4 and mask.shape[2] > 1:
        return None
    flat = mask if mask.dim() == 2 else mask[:, 0, 0]
    return (flat == 0 if flat.is_floating_point() else flat).long()


def first_position(config: Any) -> int:
    """Index in the table of positions of a row's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in AFTER_PADDING else 0


def check_config(config: Any) -> None:
    """Reject networks that are not bidirectional.

    Raises:
        ValueError: the configuration makes the network causal or an encoder-decoder.
    """
    for name in ("is_decoder", "is_encoder_decoder", "causal"):
        if getattr(config, name, False):
            raise ValueError(
                f"{name} must be False for a mask predictor: a {config.model_type} with it does "
                "not see both sides"
            )


def encoder_spec(config: Any, tokenizer: Any, mask_id: int | None = None) -> ModelSpec:
    """The facts of a masked language model, mostly from its tokenizer.

    There is no stop token, because these networks were not trained to end a text. Special tokens
    are therefore never sampled, and every blank is filled. Every row ends with the token that the
    tokenizer appends to a text.

    Args:
        config: of the network.
        tokenizer: the network's own.
        mask_id: overrides the tokenizer's.

    Raises:
        ValueError: there is no tokenizer or no mask token, an id is outside the vocabulary, or the
            network is not bidirectional.
    """
    check_config(config)
    if tokenizer is None:
        raise ValueError(
            f"a {config.model_type} needs its tokenizer, which alone knows the mask and the other "
            "special tokens"
        )
    rows = int(config.vocab_size)
    if mask_id is not None:
        integer("mask_id", mask_id, least=0, most=rows - 1)
    mask = tokenizer.mask_token_id if mask_id is None else mask_id
    if mask is None or not 0 <= mask < rows:
        raise ValueError(
            f"the tokenizer's mask must be an id below the vocabulary size {rows}, got {mask}"
        )
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)} - {mask}
    return ModelSpec(
        family=config.model_type,
        vocab_size=rows,
        mask_id=mask,
        eos_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        stop_ids=(),
        max_length=longest(config, tokenizer),
        unused=(min(len(tokenizer), rows), rows),
        never=tuple(sorted(i for i in special if i < rows)),
        suffix=closing(tokenizer),
        caches=False,
    )


def longest(config: Any, tokenizer: Any) -> int:
    """The most tokens of a row: the tokenizer's limit, or the number of positions if smaller."""
    limit = int(tokenizer.model_max_length)
    places = getattr(config, "max_position_embeddings", None)
    return limit if places is None else min(limit, int(places) - first_position(config))


def closing(tokenizer: Any) -> tuple[int, ...]:
    """The separator or end of text that the tokenizer appends to every text, if any."""
    around: list[int] = tokenizer("")["input_ids"]
    ends = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    return (around[-1],) if around and around[-1] in ends else ()
