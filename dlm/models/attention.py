"""Attention of our networks: through transformers' backends, or as the cache view computes it.

Shapes: B rows, L tokens per row, K keys, H heads, E head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from dlm.cache import View
from dlm.kernels.linear import FOUR
from dlm.models.model import MASKED


def mask_of(config: Any, x: Tensor, attention_mask: Tensor | None) -> Any:
    """The mask in the form that the attention backend takes; None for None.

    None stays None because early transformers 5 otherwise builds a mask over the queries alone
    while a CUDA graph is captured, and that does not fit the keys of a cache.

    Args:
        config: of the network.
        x: embeddings [B, L, D].
        attention_mask: [B, L], 0 at padding; or one per query, [B, L, K] or [B, 1, L, K], boolean
            or already in the backend's own form (floating).
    """
    if attention_mask is None:
        return None
    if isinstance(attention_mask, Tensor) and attention_mask.dim() > 2:
        mask = attention_mask[:, None] if attention_mask.dim() == 3 else attention_mask
        return mask if mask.is_floating_point() else of_backend(config, x, mask.bool())
    return create_bidirectional_mask(config=config, inputs_embeds=x, attention_mask=attention_mask)


def causal_mask(config: Any, x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """A causal mask without padding, bool [B, L, L]; a mask per query is returned as it is.

    Raises:
        ValueError: the attention backend takes no mask per query.
    """
    if attention_mask is not None and attention_mask.dim() > 2:
        return attention_mask
    backend = config._attn_implementation
    if backend not in MASKED:
        raise ValueError(
            f"attn_implementation must be {' or '.join(map(repr, MASKED))} for {config.title}, "
            f"whose queries have masks of their own, got {backend!r}"
        )
    length = x.shape[1]
    sees = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None]
    return sees if attention_mask is None else sees & attention_mask.bool()[:, None]


def of_backend(config: Any, x: Tensor, sees: Tensor) -> Tensor:
    """A mask per query, bool [B, 1, L, K], in the form that the attention backend takes.

    Raises:
        ValueError: the backend takes no such mask.
    """
    backend = config._attn_implementation
    if backend == "eager":
        return torch.zeros_like(sees, dtype=x.dtype).masked_fill_(~sees, torch.finfo(x.dtype).min)
    if backend != "sdpa":
        raise ValueError(
            "attention_mask must be [B, L] for the attention backend "
            f"{backend!r}, got {list(sees.shape)}"
        )
    return sees


def in_fours(
    backend: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Attention by a backend, [B, L, H, E], with the queries padded to a multiple of 4 on a CPU.

    On a CPU, the sums of the last few queries are rounded differently depending on how many queries
    there are. With a multiple of 4, a query has the same bits whatever other queries there are.
    Queries are padded only without gradients and for the backends in `MASKED`.
    """
    count, masks = query.shape[2], module.config._attn_implementation in MASKED
    on_cpu = query.device.type == "cpu" and not torch.is_grad_enabled()
    more = -count % FOUR if on_cpu and masks else 0
    if more:
        query = F.pad(query, (0, 0, 0, more))
        if mask is not None and mask.shape[2] > 1:
            mask = F.pad(mask, (0, 0, 0, more), value=True)
    out: Tensor = backend(
        *(module, query, key, value, mask), dropout=0.0, scaling=module.scaling, is_causal=False
    )[0]
    return out[:, :count]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cache: View | None = None,
) -> Tensor:
    """Bidirectional scaled dot-product attention, [B, L, H, E].

    Args:
        module: the layer, with `config`, `layer_idx`, `scaling` and what else the backend reads.
        query: [B, H, L, E].
        key: [B, G, L, E] of G heads, where G divides H.
        value: like `key`.
        mask: in the backend's own form.
        cache: the view that chooses the keys and values to attend to; None for those of this pass.
    """
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    run = partial(in_fours, backend, module)
    if cache is None:
        return run(query, key, value, mask)
    direct = cache.attend(query, key, value, module.scaling)
    if direct is not None:
        return direct
    rows = cache.apart(query, key, value, mask, module.layer_idx)
    if rows is not None:
        return cache.join([run(*row) for row in rows])
    return cache.leave(run(*cache.enter(query, key, value, module.layer_idx), mask))
