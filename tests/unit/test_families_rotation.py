"""Rotary embedding as each family has it: in which dtype, and of which columns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.kernels.layers import turn
from dlm.models.configs import LladaConfig
from dlm.models.moe_configs import Llada2Config
from dlm.models.nemotron_configs import NemotronLabsDiffusionConfig
from dlm.models.qwen_configs import DreamConfig, SdarConfig
from dlm.models.rotary import RotaryEmbedding
from dlm.models.transformer import Attention

POSITIONS = torch.tensor([[0, 1, 5, 300]])


def turned(x: Tensor, theta: float, width: int, dtype: torch.dtype) -> Tensor:
    """The published rotation, column pairs one after the other, in a dtype."""
    out = x.clone()
    half = width // 2
    for j in range(half):
        angle = POSITIONS[0].float() * (1.0 / theta ** (2 * j / width))
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        one, other = x[..., j].to(dtype), x[..., j + half].to(dtype)
        out[..., j] = (one * cos - other * sin).to(x.dtype)
        out[..., j + half] = (other * cos + one * sin).to(x.dtype)
    return out


@pytest.mark.parametrize(
    ("config", "theta", "width", "dtype"),
    [
        (LladaConfig(d_model=64, n_heads=4), 5e5, 16, torch.float32),
        (DreamConfig(hidden_size=64, num_attention_heads=4), 1e6, 16, torch.bfloat16),
        (SdarConfig(head_dim=16), 1e6, 16, torch.bfloat16),
        (Llada2Config(head_dim=16), 6e5, 8, torch.bfloat16),
    ],
    ids=["llada", "dream", "sdar", "llada2"],
)
def test_rotation_of_a_half_precision_network(
    config: Any, theta: float, width: int, dtype: torch.dtype
) -> None:
    """LLaDA rotates in float32; the others round angles first. Bits differ, as they must."""
    x = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin, scale = RotaryEmbedding(config)(POSITIONS, x.dtype)
    assert scale is None
    assert cos.dtype == sin.dtype == dtype
    assert cos.shape == (1, 1, 4, width)
    found = turn(x, cos, sin)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, turned(x, theta, width, dtype))
    assert torch.equal(found[..., width:], x[..., width:])
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    assert not torch.equal(found, turned(x, theta, width, other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_queries_are_scaled_by_how_often_they_are_beyond_the_trained_length(
    dtype: torch.dtype,
) -> None:
    positions = torch.tensor([[0, 16383, 16384, 32767, 32768, 262143]])
    config: Any = NemotronLabsDiffusionConfig(head_dim=16)
    scale = RotaryEmbedding(config)(positions, dtype).scale
    assert scale is not None
    assert (scale.dtype, scale.shape) == (dtype, (1, 1, 6, 1))
    expected = [1 + 0.1 * math.log(times) for times in (1, 1, 2, 2, 3, 16)]
    assert torch.equal(scale.flatten(), torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_are_as_exact_as_the_network(dtype: torch.dtype) -> None:
    for config in (LladaConfig(), DreamConfig()):
        assert RotaryEmbedding(config)(POSITIONS, dtype)[0].dtype == dtype


def test_heads_may_be_wider_than_the_network_over_their_number() -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    attention = Attention(SdarConfig(**sizes, head_dim=32), 0)
    assert attention.q_proj.weight.shape == (128, 64)
    assert attention.o_proj.weight.shape == (64, 128)
    assert attention.q_norm.weight.shape == (32,)
    assert attention.scaling == 32**-0.5


def test_rows_of_a_fused_projection_are_query_key_value() -> None:
    config = Llada2Config(hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    attention = Attention(config, 0)
    with torch.no_grad():
        attention.qkv_proj.weight.zero_()
        attention.qkv_proj.weight[:, 0] = torch.arange(32.0)
        query, key, value = attention.parts(torch.eye(8)[None, :1])
    assert query.flatten().tolist() == list(range(16))
    assert key.flatten().tolist() == list(range(16, 24))
    assert value.flatten().tolist() == list(range(24, 32))
