"""LLaDA-MoE, LLaDA2, SDAR-MoE and RND1: official logits, released files, sizes, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import dlm
from dlm.models.families import FAMILIES
from dlm.models.model import block_causal
from dlm.models.moe_configs import Llada2Config, LladaMoeConfig, Rnd1Config, SdarMoeConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "families"
FOLDERS = ("llada2", "llada_moe", "rnd1")
NETWORKS = {"llada2": "LLaDA2MoeModelLM", "llada_moe": "LLaDAMoEModelLM", "rnd1": "RND1LM"}
QWEN3_30B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 151936,
}
RELEASED: dict[Any, dict[str, Any]] = {
    LladaMoeConfig: {
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_layer_freq": [1] * 16,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000,
    },
    Llada2Config: {
        "num_key_value_heads": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 600000,
        "rotary_dim": 64,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "block_size": 32,
    },
    Rnd1Config: QWEN3_30B | {"max_position_embeddings": 40960},
    SdarMoeConfig: QWEN3_30B | {"max_position_embeddings": 32768, "block_size": 4},
}
CONFIGS = tuple(RELEASED)
FLASH = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "num_attention_heads": 32,
    "moe_intermediate_size": 1024,
}


def read(folder: str, name: str) -> Any:
    return json.loads((GOLDEN / folder / name).read_text())


def load(folder: str, **options: Any) -> Any:
    """The network, through transformers and with our classes."""
    options = {"dtype": torch.float32} | options
    return transformers.AutoModelForMaskedLM.from_pretrained(GOLDEN / folder, **options).eval()


@torch.no_grad()
def logits(network: Any, record: dict[str, Any]) -> Tensor:
    """Logits [L, V] with the attention that a record asks for."""
    ids = torch.tensor(record["input_ids"])[None]
    positions = torch.arange(ids.shape[1])[None]
    mask = None
    if record["attention"] == "block_causal":
        mask = block_causal(positions, positions, record["block_size"])[:, None]
        if network.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return torch.as_tensor(network.project(network.states(ids, mask, positions))[0])


def distance(network: Any, folder: str) -> float:
    """Largest difference from the official logits, over all records."""
    return max(
        float((logits(network, record) - torch.tensor(record["logits"])).abs().max())
        for record in read(folder, "logits.json")
    )


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_official_logits(folder: str, attention: str, experts: str) -> None:
    network = load(folder, attn_implementation=attention, experts_implementation=experts)
    assert type(network).__name__ == NETWORKS[folder]
    assert network.config._experts_implementation == experts
    assert network.model.layers[-1].mlp.experts.config._experts_implementation == experts
    assert distance(network, folder) < 1e-4


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_dlm_loads_it_with_the_attention_of_its_family(folder: str, direct: bool) -> None:
    model = dlm.load(GOLDEN / folder, dtype="float32", direct=direct)
    wanted = "block_causal" if folder == "llada2" else "full"
    records = [r for r in read(folder, "logits.json") if r["attention"] == wanted]
    assert len(records) == 3
    for record in records:
        found = model.raw_logits(torch.tensor(record["input_ids"])[None])[0]
        expected = torch.tensor(record["logits"])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.spec.mask_id == records[0]["mask_token_id"]
    assert model.spec.shift == (records[0]["shift"] == "next")
    assert model.spec.block_size == records[0]["block_size"]


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("llada2", {"routed_scaling_factor": 1.0}),
        ("llada2", {"topk_group": 4}),
        ("llada2", {"num_experts_per_tok": 3}),
        ("llada2", {"partial_rotary_factor": 1.0, "rotary_dim": None}),
        ("llada2", {"rope_theta": 300000}),
        ("llada2", {"rms_norm_eps": 1e-5}),
        ("llada_moe", {"rope_theta": 25000}),
        ("llada_moe", {"num_experts_per_tok": 3}),
        ("rnd1", {"rope_theta": 500000}),
        ("rnd1", {"num_experts_per_tok": 3}),
    ],
)
def test_official_logits_tell_other_settings(folder: str, changes: dict[str, Any]) -> None:
    config = transformers.AutoConfig.from_pretrained(GOLDEN / folder)
    other = type(config).from_dict(config.to_dict() | changes)
    assert distance(load(folder, config=other), folder) > 4e-4


def test_official_logits_tell_the_bias_that_selects() -> None:
    network = load("llada2")
    for name, bias in network.named_buffers():
        if name.endswith("expert_bias"):
            bias.zero_()
    assert distance(network, "llada2") > 1.0


@pytest.mark.parametrize(("folder", "normalised"), [("llada_moe", True), ("rnd1", False)])
def test_official_logits_tell_the_sum_of_the_weights(folder: str, normalised: bool) -> None:
    network = load(folder)
    for layer in network.model.layers:
        layer.mlp.gate.normalised = normalised
    assert distance(network, folder) > 1.0


@pytest.mark.parametrize("shards", ["5GB", "100KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_save_keeps_the_released_files(
    folder: str, dtype: torch.dtype, shards: str, tmp_path: Path
) -> None:
    load(folder, dtype=dtype).save_pretrained(tmp_path, max_shard_size=shards)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 3) == (shards == "100KB")
    before = load_file(GOLDEN / folder / "model.safetensors")
    after = {name: weight for file in files for name, weight in load_file(file).items()}
    assert before.keys() == after.keys()
    for name, weight in before.items():
        wide = name.endswith("expert_bias")
        assert after[name].dtype == (torch.float32 if wide else dtype), name
        assert torch.equal(after[name], weight if wide else weight.to(dtype)), name
    saved = json.loads((tmp_path / "config.json").read_text())
    about_code = {"auto_map", "torch_dtype", "dtype", "transformers_version", "sliding_window"}
    for key, value in read(folder, "config.json").items():
        assert key in about_code or saved[key] == value, key
    assert "auto_map" not in saved
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    if dtype == torch.float32:
        assert distance(again, folder) < 1e-4


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"])
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("folder", FOLDERS)
def test_auto_classes(folder: str, auto: str, trust: bool) -> None:
    kind = getattr(transformers, auto)
    network = kind.from_pretrained(GOLDEN / folder, trust_remote_code=trust)
    assert f"{type(network).__module__}.{type(network).__name__}" == (
        f"dlm.models.moe.{NETWORKS[folder]}"
    )
    assert network.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_bfloat16_is_close_to_float32(folder: str, experts: str) -> None:
    """A near tie may send a token to other experts, so most tokens are close and not all."""
    network = load(folder, dtype=torch.bfloat16, experts_implementation=experts)
    for record in read(folder, "logits.json"):
        found, expected = logits(network, record), torch.tensor(record["logits"])
        assert found.dtype == torch.bfloat16
        far = (found.float() - expected).abs().amax(-1) / expected.abs().max()
        assert far.median() < 0.06


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_float64_after_loading(folder: str, experts: str) -> None:
    """Whatever experts were chosen: not every one of transformers' functions takes it."""
    network = load(folder, experts_implementation=experts).to(torch.float64)
    for record in read(folder, "logits.json"):
        found = logits(network, record)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), torch.tensor(record["logits"]), atol=1e-4, rtol=0)
    assert network.config._experts_implementation == experts


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
def test_the_bias_that_selects_stays_in_float32(direct: bool) -> None:
    network = dlm.load(GOLDEN / "llada2", dtype="bfloat16", direct=direct).network
    released = load_file(GOLDEN / "llada2" / "model.safetensors")
    biases = {name: b for name, b in network.named_buffers() if name.endswith("expert_bias")}
    assert len(biases) == 2
    for name, bias in biases.items():
        assert bias.dtype == torch.float32
        assert torch.equal(bias, released[name])
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prompt_decodes_the_same_among_others(folder: str) -> None:
    model = dlm.load(GOLDEN / folder, dtype="float32")
    prompts = [[5, 6], [17, 3, 300, 44, 9, 8, 7, 2, 1], [8], [2, 2, 2]]
    options: dict[str, Any] = {"gen_length": 20, "block_length": 8, "temperature": 0.8, "seed": 3}
    together = dlm.generate(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = dlm.generate(model, [prompt], row_keys=[row], **options)
        assert together.tokens[row] == alone.tokens[0]


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
@pytest.mark.parametrize("name", ["down_proj", "up_proj"])
def test_a_missing_expert_is_refused(name: str, direct: bool, tmp_path: Path) -> None:
    weights = load_file(GOLDEN / "rnd1" / "model.safetensors")
    del weights[f"model.layers.1.mlp.experts.3.{name}.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(GOLDEN / "rnd1" / "config.json", tmp_path / "config.json")
    with pytest.raises(ValueError, match="the weights of"):
        dlm.load(tmp_path, direct=direct)


@pytest.mark.parametrize(
    ("family", "changes", "parameters"),
    [
        ("llada2", {}, 16_255_643_392),
        ("llada2", FLASH, 102_889_705_216),
        ("llada-moe", {}, 7_356_880_896),
        ("rnd1", {}, 30_532_122_624),
        ("sdar-moe", {}, 30_532_122_624),
    ],
    ids=["llada2-mini", "llada2-flash", "llada-moe", "rnd1", "sdar-moe"],
)
def test_released_parameter_counts(family: str, changes: dict[str, Any], parameters: int) -> None:
    """The published counts include what selects experts and is not trained by gradients."""
    config = FAMILIES[family].config_class()(**changes)
    with torch.device("meta"):
        network = transformers.AutoModelForMaskedLM.from_config(config)
    assert sum(weight.numel() for weight in network.state_dict().values()) == parameters


def test_released_names_of_mini() -> None:
    """Names and shapes of the released LLaDA2-mini, as its index lists them."""
    from dlm.models.conversions import renamed

    with torch.device("meta"):
        network = transformers.AutoModelForMaskedLM.from_config(Llada2Config())
    shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    for released, shape in {
        "model.word_embeddings.weight": [157184, 2048],
        "model.layers.3.attention.query_key_value.weight": [3072, 2048],
        "model.layers.3.attention.query_layernorm.weight": [128],
        "model.layers.3.attention.dense.weight": [2048, 2048],
        "model.layers.0.mlp.gate_proj.weight": [5120, 2048],
        "model.layers.3.mlp.gate.weight": [256, 2048],
        "model.layers.3.mlp.gate.expert_bias": [256],
        "model.layers.3.mlp.shared_experts.down_proj.weight": [2048, 512],
        "lm_head.weight": [157184, 2048],
    }.items():
        assert shapes[renamed(released, type(network))] == shape, released


def test_new_weights_are_drawn() -> None:
    """A network that is not loaded: nothing of it is left uninitialised."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(GOLDEN / "llada2")
    network = transformers.AutoModelForMaskedLM.from_config(config)
    for name, weight in network.named_parameters():
        if "norm" not in name:
            assert 0.8 < weight.std() / config.initializer_range < 1.2, name
    for name, bias in network.named_buffers():
        if name.endswith("expert_bias"):
            assert not bias.any(), name


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_are_those_of_the_release(config: Any) -> None:
    found = config().to_dict()
    assert {key: found[key] for key in RELEASED[config]} == RELEASED[config]


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_survive_a_file(config: Any, tmp_path: Path) -> None:
    before = config(architectures=[config.declared[0]])
    before.save_pretrained(tmp_path)
    after = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(after) is config
    assert after.to_dict() | {"_name_or_path": ""} == before.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == ("llada" if config is LladaMoeConfig else config.model_type)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_value_that_no_release_has_is_refused(config: Any) -> None:
    for name, values in config.fixed.items():
        if name == "sliding_window":  # a window that is switched off is none
            continue
        other: Any = 7 if values[0] is None else not values[0]
        if isinstance(values[0], str | list):
            other = type(values[0])("7")
        with pytest.raises(ValueError, match=f"{name} must be .* as in every released"):
            config(**{name: other})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LladaMoeConfig, {"moe_layer_freq": [1] * 15 + [0]}, "moe_layer_freq must be 1"),
        (LladaMoeConfig, {"num_attention_heads": 48}, "num_attention_heads must divide"),
        (Llada2Config, {"rotary_dim": 128}, "rotary_dim must be"),
        (Llada2Config, {"n_group": 7}, "n_group must divide num_experts"),
        (Llada2Config, {"n_group": 256}, "n_group must divide num_experts"),
        (Llada2Config, {"topk_group": 9}, "topk_group must be an int <= 8"),
        (Llada2Config, {"num_experts_per_tok": 129}, "num_experts_per_tok must be an int <= 128"),
        (Rnd1Config, {"num_experts_per_tok": 129}, "num_experts_per_tok must be an int <= 128"),
        (Rnd1Config, {"num_experts_per_tok": 0}, "num_experts_per_tok must be an int >= 1"),
        (SdarMoeConfig, {"rope_scaling": {"type": "yarn"}}, "rope_scaling must be None"),
        (SdarMoeConfig, {"num_key_value_heads": 5}, "num_key_value_heads must divide"),
    ],
)
def test_settings_that_cannot_be(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_an_implementation_of_experts_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="is not supported"):
        load("rnd1", experts_implementation="magic")


def test_a_network_without_experts_has_no_implementation_of_them(golden_folder: Path) -> None:
    with pytest.raises(ValueError, match="does not support setting experts"):
        transformers.AutoModelForMaskedLM.from_pretrained(
            golden_folder, experts_implementation="grouped_mm"
        )
