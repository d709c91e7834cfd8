"""Families: how a checkpoint is recognised, and what is known about each."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm.models.catalog import CHECKPOINTS
from dlm.models.facts import resolve
from dlm.models.families import ENCODER, FAMILIES, family_of, find
from dlm.models.family import SETTLED


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_by_what_its_files_declare(family: str) -> None:
    known = FAMILIES[family]
    for architecture in known.architectures:
        files = {"model_type": known.model_type, "architectures": [architecture]}
        assert find(files, family) is known
        if not known.opt_in:
            assert find(files) is known
    network, config = known.network_class(), known.config_class()
    assert network.__name__ == known.architectures[0]
    assert network.config_class is config
    assert family_of(config()) is known


def test_no_two_families_look_the_same() -> None:
    seen = [(f.model_type, name) for f in FAMILIES.values() for name in f.architectures]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"model_type": "llada"}, "llada"),
        ({"model_type": "llada", "num_experts": 64}, "llada-moe"),
        ({"model_type": "Dream"}, "dream"),
        ({"model_type": "Dream", "block_size": 32, "head_dim": 128}, "dream-reasoner"),
        ({"model_type": "sdar", "architectures": []}, "sdar"),
        ({"model_type": "sdar", "architectures": None}, "sdar"),
    ],
)
def test_families_without_a_declared_architecture(files: dict[str, Any], family: str) -> None:
    assert find(files) is FAMILIES[family]
    config = FAMILIES[family].config_class().from_dict(files)
    assert family_of(config) is FAMILIES[family]


@pytest.mark.parametrize("family", ["llada-moe", "dream-reasoner"])
def test_a_shared_model_type_leads_to_the_right_configuration(family: str) -> None:
    known = FAMILIES[family]
    files = {"model_type": known.model_type, "architectures": [known.architectures[0]]}
    from transformers import AutoConfig

    namesake = next(f for f in FAMILIES.values() if f.model_type == known.model_type)
    assert namesake is not known
    config = namesake.config_class().from_dict(files)
    assert type(config) is known.config_class()
    assert config.to_dict()["model_type"] == known.model_type
    assert type(AutoConfig.for_model(config.model_type)) is known.config_class()


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("bert", "BertForMaskedLM"), ("modernbert", "Any"), ("bert", "")],
)
def test_masked_language_models_of_transformers(model_type: str, architecture: str) -> None:
    assert find({"model_type": model_type, "architectures": [architecture]}) is ENCODER


@pytest.mark.parametrize(
    ("files", "family", "message"),
    [
        ({}, None, "not a masked-diffusion family known here. Known: llada, illada, llada-moe, "),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, None, "='diffullama'"),
        ({"model_type": "llama"}, None, "autoregressive network unless .*='diffullama'"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "stable-diffcoder",
            "of StableDiffcoderForCausalLM, got 'llama' and 'LlamaForCausalLM'",
        ),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, None, "an autoreg"),
        ({"model_type": "bert", "architectures": ["BertForCausalLM"]}, None, "autoregressive"),
        (
            {"model_type": "llada", "architectures": ["Other"]},
            None,
            "LLaDAMoEModelLM.* got 'Other'",
        ),
        ({"model_type": "Dream", "architectures": ["Qwen2ForCausalLM"]}, None, "DreamForCausalLM"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, None, "='open-dcoder'"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForSomething"]}, None, "Qwen2ForCausalLM"),
        ({"model_type": "diffusion_gemma"}, None, "random tokens instead of masks"),
        ({"model_type": "nemotron_labs_diffusion_vlm"}, None, "reads images, too"),
        ({"graph": {"type": "absorb"}, "tokens": 50257}, None, "ratios of probabilities"),
        ({"model_type": "llada"}, "lada", "unknown family 'lada'. Did you mean 'llada'"),
        ({"model_type": "llada"}, "dream", "family 'dream' has model_type 'Dream'"),
        (
            {"model_type": "qwen2", "architectures": ["Qwen2Model"]},
            "open-dcoder",
            "got 'qwen2' and 'Qwen2Model'",
        ),
    ],
)
def test_what_is_no_family_is_refused(
    files: dict[str, Any], family: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find(files, family)


@pytest.mark.parametrize(
    ("family", "name", "files", "block"),
    [
        ("sdar", "JetLM/SDAR-8B-Chat", {}, 4),
        ("sdar", "JetLM/SDAR-8B-Chat", {"block_size": 16}, 16),
        ("sdar", "JetLM/SDAR-8B-Chat-b32", {"block_size": 4}, 32),
        ("sdar", "/models/SDAR-1.7B-Chat-b8/", {"block_size": 4}, 8),
        ("sdar", "/models/my-b8", {"block_size": 4}, 4),
        ("sdar", "/models/sdar-gsm8k-b16", {"block_size": 4}, 4),
        ("sdar", "/models/SDAR-8B-Chat-b16-3ep", {"block_size": 4}, 4),
        ("sdar", "/models/sdar-8b-chat-b12", {"block_size": 4}, 4),
        ("sdar", "JetLM/SDAR-8B-Chat-b64", {"block_size": 4, SETTLED: True}, 4),
        ("sdar-moe", "JetLM/SDAR-30B-A3B-Sci-b64", {}, 64),
        ("sdar-moe", "JetLM/SDAR-30B-A3B-Chat-b16", {}, 16),
        ("a2d-qwen3", "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1", {}, 32),
        ("a2d-qwen3", "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", {}, None),
        ("a2d-qwen3", "Qwen3-diffusion-bd3lm", {SETTLED: True}, None),
        ("a2d-qwen2", "bd3lm/other", {}, None),
        ("fast-dllm-v2", "", {"bd_size": 16}, 16),
        ("llada2", "", {}, 32),
        ("dream-reasoner", "", {}, 32),
        ("dream", "", {"block_size": 32}, None),
        ("bd3lm", "kuleshov-group/bd3lm-owt-block_size16", {"block_size": 16}, 16),
        ("bd3lm", "", {"block_size": 16, "cross_attn": False}, None),
    ],
)
def test_block_size_by_name_then_file_then_family(
    family: str, name: str, files: dict[str, Any], block: int | None
) -> None:
    known = FAMILIES[family]
    assert known.block_of(known.config_class()(**files), name) == block


def tokenizer(mask: int | None = None, **vocabulary: int) -> Any:
    """A tokenizer that has token i for every id below 100, and what it is told."""
    words = {str(i): i for i in range(100)} | vocabulary
    return SimpleNamespace(
        mask_token_id=mask, bos_token_id=1, eos_token_id=2, get_vocab=lambda: words
    )


def facts(family: str, given: Any = None, stops: tuple[int, ...] = (), **options: Any) -> Any:
    """The facts of a checkpoint of the released size, as its `config.json` has none."""
    config = FAMILIES[family].config_class()(**options.pop("files", {}))
    config.name_or_path = options.pop("name", "")
    return resolve(config, stops, given, **options)


@pytest.mark.parametrize(
    ("family", "mask", "stops", "shift", "block", "owned"),
    [
        ("llada", 126336, (126081, 126348), False, None, 126349),
        ("illada", 5, (2,), False, None, 155136),
        ("llada-moe", 156895, (156892,), False, None, 157184),
        ("llada2", 156895, (156892,), False, 32, 157184),
        ("dream", 151666, (151643, 151645), True, None, 151667),
        ("sdar", 151669, (151643, 151645), False, 4, 151670),
        ("sdar-moe", 151669, (151643, 151645), False, 4, 151670),
        ("rnd1", 151669, (151645,), True, None, 151670),
        ("fast-dllm-v2", 151665, (151645,), True, 32, 151666),
        ("open-dcoder", 151665, (151643, 151645), True, None, 151666),
        ("coda", 151669, (151643, 151645), True, None, 151670),
        ("diffullama", 811, (2,), True, None, 32000),
        ("stable-diffcoder", 5, (2,), False, 4, 155136),
        ("mdlm", 50257, (50256,), False, None, 50258),
        ("bd3lm", 50257, (50256,), False, 4, 50258),
    ],
)
def test_facts_of_the_releases(
    family: str,
    mask: int,
    stops: tuple[int, ...],
    shift: bool,
    block: int | None,
    owned: int,
) -> None:
    found = facts(family)
    assert found.family == family
    assert found.mask_id == mask
    assert set(found.stop_ids) == set(stops)
    assert (found.shift, found.block_size, found.unused[0]) == (shift, block, owned)


ORDER = [
    ({"mask_id": 7, "declared_mask": 8, "files": {"mask_token_id": 9}}, 7),
    ({"declared_mask": 8, "files": {"mask_token_id": 9}}, 8),
    ({"files": {"mask_token_id": 9}}, 9),
    ({}, 151666),
]


@pytest.mark.parametrize(
    ("options", "mask"), ORDER, ids=["argument", "generation", "file", "table"]
)
def test_the_mask_is_the_most_particular_one(options: dict[str, Any], mask: int) -> None:
    assert facts("dream", **options).mask_id == mask


def test_the_tokenizer_has_the_mask_where_nothing_else_does() -> None:
    small = {"vocab_size": 200, "eos_token_id": 3}
    assert facts("dream", tokenizer(90), files=small).mask_id == 90
    assert facts("dream", tokenizer(**{"<|mask|>": 91}), files=small).mask_id == 91
    with pytest.raises(ValueError, match="mask_id is in no file of the checkpoint"):
        facts("dream", tokenizer(), files=small)
    with pytest.raises(ValueError, match="mask_id is in no file"):
        facts("dream", files=small)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (tokenizer(5), {}, "the mask of dream 151666 and the tokenizer's 5 disagree"),
        (tokenizer(**{"<|mask|>": 151647}), {}, "151666 and the tokenizer's 151647 disagree"),
        (tokenizer(5), {"declared_mask": 6}, "generation_config.json's mask_token_id 6 and"),
        (tokenizer(5), {"files": {"mask_token_id": 9}}, "the configuration's mask_token_id 9 and"),
        (None, {"declared_mask": 152064}, "below the vocabulary size 152064, got generation_conf"),
        (None, {"declared_mask": True}, "below the vocabulary size"),
        (None, {"mask_id": 152064}, "mask_id must be an int <= 152063, got 152064"),
        (None, {"stops": (151666,)}, "other than the mask's 151666"),
    ],
)
def test_facts_that_contradict_each_other(
    given: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        facts("dream", given, **options)


def test_an_argument_settles_a_contradiction() -> None:
    assert facts("dream", tokenizer(5), mask_id=151666).mask_id == 151666


def test_blocks_behind_the_prompt_are_for_families_with_such_adapters() -> None:
    """D2F's, for LLaDA and Dream: without a size they look both ways."""
    plain, behind = facts("dream"), facts("dream", block_size=16)
    assert (plain.block_size, plain.anchored) == (None, False)
    assert (behind.block_size, behind.anchored, behind.grid) == (16, True, None)
    assert not facts("sdar", block_size=16).anchored
    with pytest.raises(ValueError, match=r"block_size goes with families .* rnd1 looks both ways"):
        facts("rnd1", block_size=16)


@pytest.mark.parametrize("block_size", [0, True, 2.0, "4"])
def test_bad_block_sizes(block_size: Any) -> None:
    with pytest.raises(ValueError, match="block_size must be an int >= 1"):
        facts("sdar", block_size=block_size)


def test_a_block_size_overrides_the_name_and_the_file() -> None:
    name = "JetLM/SDAR-8B-Chat-b8"
    options: dict[str, Any] = {"name": name, "files": {"block_size": 16}}
    assert facts("sdar", **options).block_size == 16  # of its own, not the family's 4
    assert facts("sdar", block_size=2, **options).block_size == 2
    cached = f"/cache/models--{name.replace('/', '--')}/snapshots/0a1b2c"
    for place in (name, f"/models/{name}", cached):
        assert facts("sdar", name=place, files={"block_size": 4}).block_size == 8
    for place in ("/tmp/test_sdar-b8_0", "/tmp/some-b8"):
        assert facts("sdar", name=place, files={"block_size": 4}).block_size == 4
    assert facts("a2d-qwen2", tokenizer(90), (3,), block_size=2).block_size == 2


def test_rows_that_no_token_owns_are_never_sampled() -> None:
    """Gaps between added tokens too, and the token that asks for another blank."""
    given = tokenizer(**{"<|mask|>": 110, "<|im_end|>": 105, "<|expand|>": 104})
    found = facts("dream", given, files={"vocab_size": 120, "eos_token_id": 3})
    assert found.unused == (111, 120)
    assert found.never == (100, 101, 102, 103, 106, 107, 108, 109)
    assert found.expand_id == 104
    assert found.stop_ids == (3, 105)
    assert set(found.banned) == {*range(100, 105), *range(106, 120)}
    assert {*found.banned} - {*found.growing.banned} == {104}


def test_texts_with_blanks_that_grow_stand_between_begin_and_end_of_text() -> None:
    files = {"vocab_size": 120, "eos_token_id": 2}
    given = tokenizer(**{"<|mask|>": 110, "<|expand|>": 104})
    assert facts("dream", given, files=files).frame == ((1,), (2,))
    given.bos_token_id = None
    assert facts("dream", given, files=files).frame == ((), (2,))
    assert facts("dream", tokenizer(**{"<|mask|>": 110}), files=files).frame is None


def test_stop_ids_of_a_small_vocabulary_are_its_own() -> None:
    files = {"vocab_size": 200, "mask_token_id": 9, "eos_token_id": [3, 4]}
    assert facts("dream", None, (5,), files=files).stop_ids == (5, 3, 4)
    with pytest.raises(ValueError, match="eos_token_id is in no file"):
        facts("dream", files={"vocab_size": 200, "mask_token_id": 9})


SIZES: list[tuple[str, dict[str, Any], int]] = [
    ("llada", {}, 8_015_581_184),
    ("illada", {}, 7_615_025_152),
    ("llada-moe", {}, 7_356_880_896),
    ("llada2", {}, 16_255_643_392),
    (
        "llada2",
        {
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 9216,
            "num_attention_heads": 32,
            "moe_intermediate_size": 1024,
        },
        102_889_705_216,
    ),
    ("dream", {}, 7_615_616_512),
    ("dream-reasoner", {}, 8_190_735_360),
    ("sdar", {}, 8_190_735_360),
    ("sdar", {"hidden_size": 2560, "intermediate_size": 9728}, 4_411_424_256),
    ("sdar-moe", {}, 30_532_122_624),
    ("rnd1", {}, 30_532_122_624),
    ("fast-dllm-v2", {}, 7_615_616_512),
    ("open-dcoder", {}, 494_032_768),
    ("coda", {}, 2_031_739_904),
    ("diffullama", {}, 6_738_415_616),
    ("stable-diffcoder", {}, 8_250_462_208),
    ("a2d-qwen2", {}, 494_032_768),
    ("a2d-qwen3", {}, 596_049_920),
    ("mdlm", {}, 169_627_218),
    ("bd3lm", {}, 169_627_218),
]


@pytest.mark.parametrize(("family", "files", "count"), SIZES)
def test_parameters_of_the_releases(family: str, files: dict[str, Any], count: int) -> None:
    """Counted as published: with the bias of LLaDA2's experts, without what can be computed."""
    known = FAMILIES[family]
    with torch.device("meta"):
        network = known.network_class()(known.config_class()(**files))
    held = dict(network.named_parameters()) | {
        name: bias for name, bias in network.named_buffers() if name.endswith("expert_bias")
    }
    assert sum(math.prod(tensor.shape) for tensor in held.values()) == count
    assert count in {row.parameters for row in CHECKPOINTS if row.family == family}


def test_every_checkpoint_is_of_a_family_and_every_family_has_one() -> None:
    names = [row.name for row in CHECKPOINTS]
    assert len(names) == len(set(names))
    assert {row.family for row in CHECKPOINTS} == FAMILIES.keys() - {"a2d-llama"}


def test_a_block_size_is_kept_by_what_is_saved() -> None:
    """Whatever the name of the folder it is saved to; what is asked of one model is not."""
    for family in ("sdar", "a2d-qwen3", "fast-dllm-v2"):
        found = FAMILIES[family]
        config = found.config_class()()
        config.name_or_path = ""
        found.write_block(config, 16)
        assert resolve(config, [3], None, mask_id=90, block_size=2).block_size == 2
        again = found.config_class().from_dict(config.to_dict())
        again.name_or_path = "mine"
        assert resolve(again, [3], None, mask_id=90).block_size == 16


def test_a_file_may_name_the_mask_among_its_ends() -> None:
    """Which an argument may not: there is nothing that it could mean."""
    config = FAMILIES["sdar"].config_class()(vocab_size=100)
    assert resolve(config, [90, 7], None, mask_id=90).stop_ids == (7,)
    with pytest.raises(ValueError, match="other than the mask's 90, one at least, got"):
        resolve(config, [90], None, mask_id=90)
    config.eos_token_id = [90, 8]
    assert resolve(config, [7], None, mask_id=90).stop_ids == (7, 8)


def test_stop_ids_are_given_where_no_file_has_them() -> None:
    config = FAMILIES["sdar"].config_class()(vocab_size=100)
    with pytest.raises(ValueError, match="eos_token_id is in no file of the checkpoint: pass stop"):
        resolve(config, [], None, mask_id=90)
    assert resolve(config, [], None, mask_id=90, stops=[4, 5]).stop_ids == (4, 5)
    config.pad_token_id = 7
    assert resolve(config, [], None, mask_id=90).stop_ids == (7,)
    cases: list[list[Any]] = [[90], [100], ["x"], []]
    for bad in cases:
        with pytest.raises(ValueError, match="stop ids must be ids below"):
            resolve(config, [], None, mask_id=90, stops=bad)


def test_an_architecture_known_at_first_hand_is_enough() -> None:
    assert find({"model_type": "llada", "architectures": ["ILLaDAForCausalLM"]}).name == "illada"
    assert find({"model_type": "mdlm", "architectures": ["MDLMForMaskedLM"]}).name == "mdlm"
    with pytest.raises(ValueError, match="is not a masked-diffusion family"):
        find({"model_type": "gpt2", "architectures": ["LLaDAModelLM"]})
