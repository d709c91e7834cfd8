"""Masked language models of transformers (BERT and its kin) as mask predictors.

They were trained to predict masked tokens from both sides and are told no noise level, so a policy
can decode with them as they are (Wang and Cho 2019, arXiv:1902.04094).

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
"""Modules from hidden states to logits, by model type; the base model comes before them.

These families place tokens by `position_ids` alone and take a 4-D attention mask."""

AFTER_PADDING = {"camembert", "roberta", "roberta-prelayernorm", "xlm-roberta"}
"""Families whose position 0 is the row behind the padding id's in the table of positions."""

OTHER_HEADS = (
    r"(^|\.)pooler\.",
    r"(^|\.)seq_relationship\.",
    r"(^|\.)sop_classifier\.",
    r"(^|\.)position_ids$",
)
"""Weights of a released checkpoint that a masked language model has no use for, as patterns."""


class Encoder(nn.Module):
    """One of transformers' masked language models, as a `dlm.models.model.Network`.

    For model types in `PROJECTIONS` the vocabulary projection is computed where it is needed only.
    For any other, `states` are the logits of all positions and `project` hands them on: as right,
    but dearer; such a network takes whole rows and no mask of a decoder's own.
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
        """Of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        """The module whose `weight` is the embedding."""
        module: nn.Module = self.network.get_input_embeddings()
        return module

    def get_output_embeddings(self) -> nn.Module | None:
        """The projection to the vocabulary."""
        module: nn.Module | None = self.network.get_output_embeddings()
        return module

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Write the network as transformers does.

        Raises:
            ValueError: there is an adapter in its layers.
        """
        refuse_adapted(self)
        self.network.save_pretrained(*args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the network itself gives."""
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
            ValueError: there is a cache; or a mask for every query for a family not in
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
        """Logits [B, L, V] of whole rows: queries at other positions come with their own mask."""
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
    """Whether a query sees a key by distance: |i - j| <= distance.

    Bool [B, 1, Q, K] of int64 [B, L], as many queries as keys.
    """
    return ((positions[:, :, None] - positions[:, None]).abs() <= distance)[:, None]


def both(mask: Tensor, allowed: Tensor) -> Tensor:
    """A 4-D mask, boolean or added to scores, that also hides what is not allowed."""
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


def padding_mask(mask: Tensor) -> Tensor | None:
    """A mask that is the same for every query, as int64 [B, L], 0 at padding; None if it is not.

    Of [B, L] or [B, 1, 1, L], boolean or added to scores.
    """
    if mask.dim() == 4 and mask.shape[2] > 1:
        return None
    flat = mask if mask.dim() == 2 else mask[:, 0, 0]
    return (flat == 0 if flat.is_floating_point() else flat).long()


def first_position(config: Any) -> int:
    """Row of the table of positions that a row's first token takes."""
    return int(config.pad_token_id) + 1 if config.model_type in AFTER_PADDING else 0


def check_config(config: Any) -> None:
    """Refuse networks that do not see both sides.

    Raises:
        ValueError: the configuration makes the network a decoder.
    """
    for name in ("is_decoder", "is_encoder_decoder", "causal"):
        if getattr(config, name, False):
            raise ValueError(
                f"{name} must be False for a mask predictor: a {config.model_type} with it does "
                "not see both sides"
            )


def encoder_spec(config: Any, tokenizer: Any, mask_id: int | None = None) -> ModelSpec:
    """The facts of a masked language model, most of which only its tokenizer knows.

    No stop token: these networks were not trained to end a text, so that special tokens are never
    sampled and every blank is filled. What the tokenizer puts behind a text closes every row.

    Args:
        config: of the network.
        tokenizer: the one it was trained with.
        mask_id: overrides the tokenizer's.

    Raises:
        ValueError: no tokenizer, no mask token, or an id outside the vocabulary.
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
    """Most tokens of a row: what the tokenizer says, and what there are positions for."""
    limit = int(tokenizer.model_max_length)
    places = getattr(config, "max_position_embeddings", None)
    return limit if places is None else min(limit, int(places) - first_position(config))


def closing(tokenizer: Any) -> tuple[int, ...]:
    """The id that the tokenizer puts behind every text, if it does."""
    around: list[int] = tokenizer("")["input_ids"]
    ends = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    return (around[-1],) if around and around[-1] in ends else ()
