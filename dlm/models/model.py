"""A network, its tokenizer and its facts, behind the two calls that decoding makes.

Shapes: B rows, L tokens, N positions, D model width, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm.cache import View
from dlm.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dlm.models.transformer import TransformerForMaskedLM


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model. `dlm.load` makes one."""

    network: "TransformerForMaskedLM"
    tokenizer: "PreTrainedTokenizerBase | None"
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        device: torch.device = self.network.model.embed_tokens.weight.device
        return device

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        attend: Tensor | None = None,
        cache: View | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D].

        Args:
            tokens: int64 [B, L].
            positions: int64 [B or 1, L].
            valid: bool [B, L], False at padding; None where there is none.
            attend: bool [B, L or 1, K] instead of `valid`, whether query (second axis) sees key
                (third).
            cache: where keys and values go, and what there is to attend to.

        Raises:
            ValueError: `attend` is given and the attention backend takes no such mask.
        """
        mask = valid if attend is None else self.attention_mask(attend)
        out = self.network.model(tokens, mask, positions, cache=cache)
        return torch.as_tensor(out.last_hidden_state)

    def attention_mask(self, attend: Tensor) -> Tensor:
        """Bool [B, L or 1, K] as the 4-D mask that the network's attention backend takes."""
        backend = self.network.config._attn_implementation
        if backend == "sdpa":
            return attend[:, None]
        if backend == "eager":
            dtype = self.network.dtype
            unseen = torch.zeros(attend.shape, dtype=dtype, device=attend.device)
            return unseen.masked_fill_(~attend, torch.finfo(dtype).min)[:, None]
        raise ValueError(
            "attn_implementation must be 'sdpa' or 'eager' for a decoder that adds queries with "
            f"an attention mask of their own, got {backend!r}"
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D], in the dtype of the network."""
        return torch.as_tensor(self.network.lm_head(hidden))

    @torch.no_grad()
    def raw_logits(self, input_ids: Tensor) -> Tensor:
        """The network as released: logits [B, L, V] of int64 [B, L], nothing banned or shifted.

        Raises:
            ValueError: ids of another shape or type, outside the vocabulary, or too many.
        """
        if input_ids.dtype != torch.int64 or input_ids.dim() != 2 or not input_ids.numel():
            raise ValueError(
                f"input_ids must be int64 [B, L], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        if input_ids.shape[1] > self.spec.max_length:
            raise ValueError(
                f"input_ids must fit the model's {self.spec.max_length} positions, "
                f"got {input_ids.shape[1]}"
            )
        if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.spec.vocab_size:
            raise ValueError(
                f"input_ids must be below the vocabulary size {self.spec.vocab_size} and >= 0, "
                f"got {int(input_ids.min())} to {int(input_ids.max())}"
            )
        tokens = input_ids.to(self.device)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return self.logits(self.hidden(tokens, positions, None))
