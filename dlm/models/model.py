"""A network, its tokenizer and its facts, behind the two calls that decoding makes.

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
"""Attention backends that take a mask for every query."""


class Network(Protocol):
    """What a family's network offers, beside what every `PreTrainedModel` has."""

    config: Any
    packs_rows: bool
    """Whether its attention passes what it works on through `cache`, so that rows of unlike lengths
    can be laid end to end, see `dlm.packing`."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """The module whose `weight` lies where token ids have to be."""
        ...

    def states(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        cache: View | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D] of int64 tokens [B, L] at int64 positions [B or 1, L].

        The mask is [B, L], False at padding, or [B, 1, L or 1, K] as the attention backend takes
        it; without one every token sees every token.
        """
        ...

    def project(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D]."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model. `dlm.load` makes one."""

    network: Any  # a `Network` and a `torch.nn.Module`
    tokenizer: "PreTrainedTokenizerBase | None"
    spec: ModelSpec
    leader: "Leader | None" = field(default=None, kw_only=True)
    """Of the processes that have the other parts of the network; None where it is whole."""

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        embedding = self.network.get_input_embeddings()
        device: torch.device = embedding.weight.device
        if device.type == "meta":  # accelerate brings the weights along for each call
            return torch.device(embedding._hf_hook.execution_device)
        return device

    def identity(self) -> dict[str, str | None]:
        """Digests of what answers depend on beside the weights, the same wherever it was loaded.

        `config` is of the network's configuration, `tokenizer` of what turns a text into ids.
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
        """The dtype of the weights, and how they are quantized if they are."""
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
        """Final hidden states [B, L, D], of which the one at i predicts the token at i.

        Where the network's output at i predicts the token after it, states are moved by one; the
        first then stands for itself, which no network was trained for.

        Args:
            tokens: int64 [B, L].
            positions: int64 [B or 1, L].
            valid: bool [B, L], False at padding; None where there is none.
            cache: where keys and values go, and what there is to attend to. With `Reuse` and a
                block-causal network `attend` has to be given.
            attend: bool [B, L or 1, K] instead of `valid`, whether query (second axis) sees key
                (third). Without it all that is valid is seen, within the family's topology: where
                blocks may begin anywhere all of the row is one.

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
        """Final hidden states [B, L, D] where the network puts them; arguments as `hidden`."""
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
        """Bool [B or 1, L, L]: which tokens of whole rows see which; None where all see all."""
        if self.spec.reordered:
            return masks_last(positions, positions, *2 * [tokens == self.spec.mask_id])
        grid = self.spec.grid
        return None if grid is None else block_causal(positions, positions, grid)

    @property
    def takes_masks(self) -> bool:
        """Whether the attention backend takes a mask for every query."""
        return self.network.config._attn_implementation in MASKED

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
        """The network as released: logits [B, L, V] of int64 [B, L], nothing banned or shifted.

        Attention is that of the family, block-causal where it is; where blocks may begin anywhere
        all of the row is one.

        Raises:
            ValueError: ids of another shape or type, outside the vocabulary, or too many.
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
    """Whether a query sees a key: floor(j / N) <= floor(i / N), of positions i and j.

    Bool [B, Q, K] of int64 [B or 1, Q] and [B or 1, K]. With an origin o, int64 [B], i and j are
    counted from there, and all that is before it is one block: max(-1, floor((i - o) / N)).
    """
    if origin is not None:
        queries, keys = ((each - origin[:, None]).clamp(min=-1) for each in (queries, keys))
    return (keys // block_size)[:, None] <= (queries // block_size)[..., None]


def causal_context(queries: Tensor, keys: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Whether a query sees a key: j <= i, or j < e if b <= i < e, of positions i and j.

    Bool [B, Q, K] of int64 [B or 1, Q], [B or 1, K], and the block [b, e) of each row, [B] both.
    """
    begin, end = begin[:, None], end[:, None]
    inside = (queries >= begin) & (queries < end)
    return (keys[:, None] <= queries[..., None]) | (inside[..., None] & (keys < end)[:, None])


def masks_last(queries: Tensor, keys: Tensor, asks: Tensor, masked: Tensor) -> Tensor:
    """Causal attention of a row whose masks stand behind all its tokens, in their order.

    Of positions i and j, with m where a mask is: a query sees a key if j <= i and (not m_j or m_i),
    or if m_i and not m_j (topological reordering of WeDLM, Liu et al. 2025, arXiv:2512.22737).

    Bool [B, Q, K] of int64 [B or 1, Q] and [B or 1, K], and m of both, bool [B, Q] and [B, K].
    """
    asks, known = asks[..., None], ~masked[:, None]
    before = keys[:, None] <= queries[..., None]
    return (before & (known | asks)) | (asks & known)


def valid_keys(sees: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Keys that are seen, bool [B, L or 1, L], without those at padding; None where all are."""
    if valid is None:
        return sees
    return valid[:, None] if sees is None else sees & valid[:, None]


def untouched(module: nn.Module) -> bool:
    """Whether a call of a module does what its class says and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return not (hooked or hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
