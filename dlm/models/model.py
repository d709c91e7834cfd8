"""A network with its tokenizer and facts, and the two calls that decoding makes: states, logits.

Shapes: B rows, L tokens, N positions, D model width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from dlm.cache import Reuse, View
from dlm.models.identity import configuration, digest, fingerprint, precision, rules
from dlm.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dlm.parallel.leader import Leader


MASKED = ("sdpa", "eager")
"""Attention backends that take a mask per query."""


class Network(Protocol):
    """What decoding needs of a family's network, beyond `PreTrainedModel`."""

    config: Any
    packs_rows: bool
    """Whether its attention passes its inputs and outputs through `cache`, so that ragged batches
    can be packed, see `dlm.packing`."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """The embedding; token ids have to be on the device of its `weight`."""
        ...

    def states(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D].

        Args:
            tokens: int64 [B, L].
            attention_mask: [B, L], False at padding; or [B, 1, L or 1, K] in the attention
                backend's own form. None attends to everything.
            positions: int64 [B or 1, L].
            cache: the view that chooses the keys and values to attend to; None for those of this
                pass.
        """
        ...

    def project(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D]."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model, from `dlm.load`."""

    network: Any  # a `Network` and a `torch.nn.Module`
    tokenizer: "PreTrainedTokenizerBase | None"
    spec: ModelSpec
    leader: "Leader | None" = field(default=None, kw_only=True)
    """Commands the processes that hold the other parts of the network; None if it is whole."""

    @property
    def device(self) -> torch.device:
        """The device where token ids have to be."""
        embedding = self.network.get_input_embeddings()
        device: torch.device = embedding.weight.device
        if device.type == "meta":  # accelerate loads offloaded weights for each call
            return torch.device(embedding._hf_hook.execution_device)
        return device

    def identity(self) -> dict[str, str | None]:
        """Digests of what results depend on besides the weights, equal on every machine.

        Returns:
            `config`, of the network's configuration, and `tokenizer`, of how text becomes ids; None
            without a tokenizer.
        """
        words = None if self.tokenizer is None else rules(self.tokenizer)
        return {"config": digest(configuration(self.network)), "tokenizer": words}

    def fingerprint(self) -> str:
        """A digest of a sample of every weight.

        Raises:
            ValueError: a weight is not in memory.
        """
        if self.leader is not None:
            return str(self.leader.call(self, "fingerprint"))
        return fingerprint(self.network)

    def precision(self) -> str:
        """The dtype of the weights, and the quantisation method if there is one."""
        return precision(self.network)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        cache: View | None = None,
        *,
        attend: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D]; the one at i predicts the token at i.

        If the network's output at i predicts token i + 1, states are shifted by one. The first
        state then also stands for the first token, for which no network was trained.

        Args:
            tokens: int64 [B, L].
            positions: int64 [B or 1, L].
            valid: bool [B, L], False at padding; None without padding.
            cache: the view that stores keys and values and chooses those to attend to. With `Reuse`
                and a block-causal network, `attend` is required.
            attend: bool [B, L or 1, K], whether a query (second axis) sees a key (third), instead
                of `valid`. By default a query sees all valid keys that the family's attention
                allows; where attention blocks may begin anywhere, the whole row is one block.

        Raises:
            ValueError: a mask is needed that the attention backend does not take.
        """
        states = self.states(tokens, positions, valid, cache, attend=attend)
        return torch.cat((states[:, :1], states[:, :-1]), 1) if self.spec.shift else states

    def states(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        cache: View | None = None,
        *,
        attend: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D] without the shift of `hidden`; arguments as there."""
        if self.leader is not None:
            if cache is not None:
                raise ValueError("cache must be None for a model that is cut over processes")
            made = self.leader.call(self, "states", tokens, positions, valid, attend=attend)
            return torch.as_tensor(made)
        if attend is None:
            sees = None if isinstance(cache, Reuse) else self.own_topology(tokens, positions)
            attend = valid_keys(sees, valid) if sees is not None or self.takes_masks else None
        mask = valid if attend is None else self.attention_mask(attend)
        return torch.as_tensor(self.network.states(tokens, mask, positions, cache))

    def own_topology(self, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """The family's attention mask on whole rows, bool [B or 1, L, L]; None if all see all."""
        if self.spec.reordered:
            return masks_last(positions, positions, *2 * [tokens == self.spec.mask_id])
        grid = self.spec.grid
        return None if grid is None else block_causal(positions, positions, grid)

    @property
    def takes_masks(self) -> bool:
        """Whether the attention backend takes a mask per query."""
        return self.network.config._attn_implementation in MASKED

    def attention_mask(self, attend: Tensor) -> Tensor:
        """Bool [B, L or 1, K] as a 4-D mask in the form that the attention backend takes.

        Raises:
            ValueError: the backend takes no mask per query.
        """
        backend = self.network.config._attn_implementation
        if backend == "sdpa":
            return attend[:, None]
        if backend == "eager":
            dtype = self.network.dtype
            unseen = torch.zeros(attend.shape, dtype=dtype, device=attend.device)
            return unseen.masked_fill_(~attend, torch.finfo(dtype).min)[:, None]
        raise ValueError(
            f"attn_implementation must be {' or '.join(map(repr, MASKED))} where queries have "
            "masks of their own: with blocks of attention, a cache of ragged rows, or decoders "
            f"that add shadow queries, got {backend!r}"
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D], in the dtype of the network."""
        if self.leader is not None:
            return torch.as_tensor(self.leader.call(self, "logits", hidden))
        return torch.as_tensor(self.network.project(hidden))

    @torch.no_grad()
    def raw_logits(self, input_ids: Tensor) -> Tensor:
        """The network's own logits [B, L, V] of int64 [B, L], with nothing banned or shifted.

        Attention is the family's, for example block-causal. Where attention blocks may begin
        anywhere, the whole row is one block.

        Raises:
            ValueError: the ids have another shape or dtype, are outside the vocabulary, or are more
                than the model has positions.
        """
        if not isinstance(input_ids, Tensor):
            raise ValueError(f"input_ids must be an int64 tensor [B, L], got {input_ids!r}")
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
        return self.logits(self.states(tokens, positions, None))


def block_causal(
    queries: Tensor, keys: Tensor, block_size: int, origin: Tensor | None = None
) -> Tensor:
    """Block-causal mask: a query at i sees a key at j if floor(j / N) <= floor(i / N).

    Args:
        queries: i, int64 [B or 1, Q].
        keys: j, int64 [B or 1, K].
        block_size: N.
        origin: o, int64 [B], from where blocks are counted, so that the block of i is
            max(-1, floor((i - o) / N)): everything before o is one block. None counts from 0.

    Returns:
        Bool [B, Q, K].
    """
    if origin is not None:
        queries, keys = ((each - origin[:, None]).clamp(min=-1) for each in (queries, keys))
    return (keys // block_size)[:, None] <= (queries // block_size)[..., None]


def causal_context(queries: Tensor, keys: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Causal mask with one bidirectional block: i sees j if j <= i, or j < e if b <= i < e.

    Args:
        queries: i, int64 [B or 1, Q].
        keys: j, int64 [B or 1, K].
        begin: b of each row, int64 [B].
        end: e of each row, int64 [B].

    Returns:
        Bool [B, Q, K].
    """
    begin, end = begin[:, None], end[:, None]
    inside = (queries >= begin) & (queries < end)
    return (keys[:, None] <= queries[..., None]) | (inside[..., None] & (keys < end)[:, None])


def masks_last(queries: Tensor, keys: Tensor, asks: Tensor, masked: Tensor) -> Tensor:
    """Causal mask of a row reordered so that all masks follow all tokens.

    With m true at masks, a query at i sees a key at j if j <= i and (not m_j or m_i), or if m_i and
    not m_j (topological reordering of WeDLM, Liu et al. 2025, arXiv:2512.22737).

    Args:
        queries: i, int64 [B or 1, Q].
        keys: j, int64 [B or 1, K].
        asks: m of the queries, bool [B, Q].
        masked: m of the keys, bool [B, K].

    Returns:
        Bool [B, Q, K].
    """
    asks, known = asks[..., None], ~masked[:, None]
    before = keys[:, None] <= queries[..., None]
    return (before & (known | asks)) | (asks & known)


def valid_keys(sees: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """The keys that are seen, without padding, bool [B, L or 1, L]; None if all are seen.

    Args:
        sees: bool [B or 1, L, L], whether a query sees a key; None if all are seen.
        valid: bool [B, L], False at padding; None without padding.
    """
    if valid is None:
        return sees
    return valid[:, None] if sees is None else sees & valid[:, None]


def untouched(module: nn.Module) -> bool:
    """Whether no replaced `forward` and no forward hook, own or global, affects a module."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return not (hooked or hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
