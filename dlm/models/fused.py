"""Transformer layers computed by the kernels of `dlm.kernels.fused_layers`.

The kernels read the weights from the modules at every forward pass, so weights that are loaded,
merged or moved later are used. If a module was replaced, for example by an adapter, or has a hook,
the modules are called instead.

Shapes: B rows, L tokens per row, M = B L, D model width, P parts, K columns, N rows of the weights,
H heads, G heads of keys, E head width.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

from dlm.cache import Reuse, View, among
from dlm.kernels import fused_int8
from dlm.kernels import fused_layers as kernels
from dlm.kernels.layers import Heads, Norms, Slots
from dlm.models.attention import attention
from dlm.models.int8 import Int8Linear
from dlm.models.linear import SILU, Linear, Mlp
from dlm.models.model import untouched
from dlm.models.rotary import Angles

OURS: Final[tuple[type[nn.Module], ...]] = (Linear, Int8Linear, nn.RMSNorm)


def covers(network: Any, x: Tensor, kinds: tuple[type[Any], type[Any]]) -> bool:
    """Whether the kernels can run all layers of a network.

    Args:
        network: a `TransformerModel`.
        x: embeddings [B, L, D].
        kinds: the expected classes of a layer and of its attention.
    """
    return (
        kernels.covers(x)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and network.config._attn_implementation == "sdpa"
        and type(network.norm) in OURS
        and untouched(network.norm)
        and len(network.layers) > 0
        and all(layer_fits(layer, x.dtype, kinds) for layer in network.layers)
    )


def layer_fits(layer: Any, dtype: torch.dtype, kinds: tuple[type[Any], type[Any]]) -> bool:
    """Whether a layer consists of the expected modules, in sizes that the kernels support."""
    if (type(layer), type(layer.self_attn)) != kinds:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    inner = [*attention.children(), layer.input_layernorm, layer.post_attention_layernorm]
    products = [projections(attention), [attention.o_proj]]
    around = [layer, attention]
    if type(mlp) is Mlp:
        biased = any(each.bias is not None for each in (mlp.gate_proj, mlp.up_proj))
        if type(mlp.act_fn) is not SILU or biased:
            return False
        products += [[mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
        inner += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        around += [mlp, mlp.act_fn]
    if not all(type(part) in OURS for part in inner):
        return False
    plain = [m.weight for each in products for m in each if type(m) is Linear]
    rounded = [m.weight for each in products for m in each if type(m) is Int8Linear]
    return (
        all(len({type(m) for m in each}) == 1 for each in products)
        and all(map(untouched, (*inner, *around)))
        and kernels.fits(attention.layout, attention.rotary_dim, dtype, *plain)
        and fused_int8.fits(*rounded)
    )


def run(network: Any, x: Tensor, angles: Angles, mask: Tensor | None, cache: View | None) -> Tensor:
    """Run all layers and the final norm: hidden states [B, L, D].

    Args:
        network: a `TransformerModel` that `covers` admits.
        x: embeddings [B, L, D].
        angles: of the tokens.
        mask: as in `dlm.models.attention.attention`.
        cache: likewise.
    """
    batch, length, width = x.shape
    angles = Angles(angles.cosine.flatten(0, 2), angles.sine.flatten(0, 2), angles.scale)
    x = x.reshape(-1, width).contiguous()
    normed: Tensor = network.layers[0].input_layernorm(x)
    following = [*(layer.input_layernorm for layer in network.layers[1:]), network.norm]
    for layer, norm in zip(network.layers, following, strict=True):
        made = attend(layer.self_attn, normed, (batch, length), angles, mask, cache)
        after = layer.post_attention_layernorm
        x, normed = kernels.add_norm(x, made, after.weight, after.eps)
        x, normed = kernels.add_norm(x, feed(layer.mlp, normed), norm.weight, norm.eps)
    return normed.view(batch, length, width)


def feed(mlp: Any, x: Tensor) -> Tensor:
    """The output of an MLP for tokens [M, D], in parts to be added up, [P, M, D]."""
    if type(mlp) is not Mlp:
        return torch.as_tensor(mlp(x))[None]
    gate, up = mlp.gate_proj, mlp.up_proj
    if isinstance(gate, Int8Linear) and isinstance(up, Int8Linear):
        return product(fused_int8.gated(x, gate.matrix, up.matrix), [mlp.down_proj])
    return product(kernels.gated(x, gate.weight, up.weight), [mlp.down_proj])


def product(x: Tensor, layers: list[Any]) -> Tensor:
    """Products of tokens [M, K] with up to three layers of one class, in parts [P, M, N]."""
    if isinstance(layers[0], Int8Linear):
        return fused_int8.product(x, [each.matrix for each in layers])
    return kernels.product(x, [each.weight for each in layers], [each.bias for each in layers])


def attend(
    module: Any,
    x: Tensor,
    shape: tuple[int, int],
    angles: Angles,
    mask: Tensor | None,
    cache: View | None,
) -> Tensor:
    """The output of attention for normed tokens [M, D], in parts to be added up, [P, M, D].

    Args:
        module: the attention of a layer.
        x: normed tokens [M, D].
        shape: B and L.
        angles: of the tokens, flattened.
        mask: as in `dlm.models.attention.attention`.
        cache: likewise.
    """
    heads: Heads = module.layout
    parts = product(x, projections(module))
    norms = None
    if module.normed:
        norms = Norms(module.q_norm.weight, module.k_norm.weight, module.q_norm.eps)
    slots = slots_of(module, x, heads, shape, cache)
    query, key, value = kernels.rotate(parts, heads, angles[:2], norms, slots, x.dtype)
    rows = query.view(*shape, *query.shape[1:])
    if angles.scale is not None:
        rows = rows * angles.scale.transpose(1, 2)
    if slots is None:
        key, value = (part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in (key, value))
        out = attention(module, rows.transpose(1, 2), key, value, mask, cache)
    else:
        assert isinstance(cache, Reuse)
        keys, values = (among(part, cache.lines) for part in (key, value))
        out = kernels.attend(rows, keys, values, cache.length, mask, module.scaling)
    out = out.reshape(len(x), -1)
    return product(out, [module.o_proj])


def slots_of(
    module: Any, x: Tensor, heads: Heads, shape: tuple[int, int], cache: View | None
) -> Slots | None:
    """Where the keys and values are stored; None unless this is a cached pass over few tokens."""
    batch, length = shape
    if type(cache) is not Reuse or length > kernels.WINDOW or cache.places.shape != shape:
        return None
    like = x.new_empty((batch, heads.keys, 0, heads.width))
    keys, values = cache.cache.layer(module.layer_idx, like)
    return Slots(keys, values, cache.places.flatten())


def projections(module: Any) -> list[Any]:
    """The projections of queries, keys and values: one fused layer, or three."""
    if module.fused:
        return [module.qkv_proj]
    return [module.q_proj, module.k_proj, module.v_proj]
