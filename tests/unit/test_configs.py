"""Configurations: numbers that none can be made of are refused by their names in the file."""

from typing import Any

import pytest
import torch

from dlm.models.families import FAMILIES
from dlm.models.nemotron_configs import ROTARY

DECODERS = [name for name in FAMILIES if name not in ("mdlm", "bd3lm")]
KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def read(family: str, **changes: Any) -> Any:
    """A configuration of the released size, some keys of which say something else."""
    files = {"rope_theta": 10000.0, "model_type": FAMILIES[family].model_type} | changes
    if family == "nemotron-labs-diffusion":  # whose files have all there is of angles in one place
        files["rope_parameters"] = ROTARY | {"rope_theta": files.pop("rope_theta")}
    return FAMILIES[family].config_class().from_dict(files)


@pytest.mark.parametrize("value", [None, "2", 2.0, 0, -1, True])
@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("family", DECODERS)
def test_sizes_are_positive_ints(family: str, name: str, value: Any) -> None:
    key = FAMILIES[family].config_class().attribute_map.get(name, name)
    with pytest.raises(ValueError, match=f"{key} must be an int >= 1, got {value!r}"):
        read(family, **{key: value})


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llada", "embedding_size"),
        ("llada", "n_kv_heads"),
        ("llada", "mlp_hidden_size"),
        ("sdar", "head_dim"),
        ("illada", "head_dim"),
        ("a2d-llama", "head_dim"),
        ("sdar-moe", "head_dim"),
        ("rnd1", "intermediate_size"),
        ("llada-moe", "dense_intermediate_size"),
    ],
)
def test_some_sizes_may_be_null(family: str, key: str) -> None:
    read(family, **{key: None})
    for value in ("2", 2.0, 0):
        with pytest.raises(ValueError, match=f"{key} must be an int >= 1, got {value!r}"):
            read(family, **{key: value})


@pytest.mark.parametrize("value", [None, "64", 0])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llada2", "intermediate_size"),
        ("llada2", "moe_intermediate_size"),
        ("sdar-moe", "num_experts"),
        ("llada-moe", "expert_intermediate_size"),
        ("dream", "intermediate_size"),
        ("dream", "num_key_value_heads"),
    ],
)
def test_others_may_not(family: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key} must be an int >= 1, got {value!r}"):
        read(family, **{key: value})


@pytest.mark.parametrize("family", DECODERS)
def test_other_numbers(family: str) -> None:
    for value in (None, "1e6", 0, float("nan")):
        with pytest.raises(
            ValueError, match=f"rope_theta must be a finite number >= 1, got {value!r}"
        ):
            read(family, rope_theta=value)
    for value in (None, "1e-6", -1.0):
        with pytest.raises(ValueError, match=f"rms_norm_eps must be a .* >= 0, got {value!r}"):
            read(family, rms_norm_eps=value)


def test_rotary_parameters_are_an_object() -> None:
    assert read("sdar", rope_parameters={"rope_theta": 5.0}).rope_theta == 5.0
    for bad in ([1], "default", 3):
        with pytest.raises(ValueError, match="rope_parameters of SDAR must be of rope_type"):
            read("sdar", rope_parameters=bad)


def test_the_width_of_a_llada_that_its_file_leaves_null() -> None:
    assert read("llada", mlp_hidden_size=None).mlp_hidden_size == 4 * 4096
    assert read("llada", mlp_hidden_size=None, mlp_ratio=3).mlp_hidden_size == 3 * 4096
    assert read("llada", mlp_ratio=None).mlp_hidden_size == 12288
    for ratio in (None, 1.5, "4"):
        with pytest.raises(ValueError, match=f"mlp_ratio must be an int >= 1, got {ratio!r}"):
            read("llada", mlp_hidden_size=None, mlp_ratio=ratio)


def test_heads_are_named_as_in_the_file() -> None:
    with pytest.raises(ValueError, match="n_kv_heads must divide n_heads, got 5 and 32"):
        read("llada", n_kv_heads=5)
    with pytest.raises(ValueError, match="num_key_value_heads must divide num_attention_heads"):
        read("sdar", num_key_value_heads=5)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("family", ["llada", "sdar", "mdlm"])
def test_dtypes(family: str, key: str) -> None:
    cases: list[tuple[Any, torch.dtype | None]] = [
        ("bfloat16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("auto", None),
        (None, None),
    ]
    for stated, dtype in cases:
        assert read(family, **{key: stated}).dtype == dtype
    for bad in ("int8", "bf16", "Tensor", 16):
        with pytest.raises(ValueError, match=f"{key} must be 'auto' or the name of a floating dty"):
            read(family, **{key: bad})
