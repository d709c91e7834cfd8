"""The block size that a checkpoint's name tells, and what a user says instead of its facts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import dlm
from dlm.distill.certainty_targets import check_family
from dlm.distill.schedule_states import Layout
from dlm.models.family import SETTLED
from dlm.models.identity import configuration
from dlm.models.model import Model

NAME = "SDAR-4B-Chat-b16"
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def named(written: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint whose configuration has the family's block size, and its name another."""
    folder = tmp_path / NAME
    shutil.copytree(written("sdar"), folder)
    return folder


def block_of(network: Any) -> int | None:
    return dlm.as_model(network).spec.block_size


@pytest.mark.parametrize("place", [".", "./", f"../{NAME}", f"../{NAME}/.", "../latest"])
@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
def test_a_folder_is_known_by_its_real_name(
    place: str, direct: bool, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (named.parent / "latest").symlink_to(named.name)
    monkeypatch.chdir(named)
    model = dlm.load(place, direct=direct)
    network = AutoModelForCausalLM.from_pretrained(place)
    monkeypatch.chdir(named.parent)
    assert model.spec.block_size == 16
    for one in (model.network, network):
        assert (one.config.block_size, block_of(one)) == (16, 16)


@pytest.mark.parametrize("size", [0, -1, "8", 8.0, True])
@pytest.mark.parametrize(
    ("family", "key"),
    [("sdar", "block_size"), ("fast-dllm-v2", "bd_size"), ("bd3lm", "block_size")],
)
def test_a_block_size_that_is_none(
    family: str, key: str, size: Any, written: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(written(family), tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "config.json").read_text()) | {key: size}
    (tmp_path / "model" / "config.json").write_text(json.dumps(stated))
    for load in (dlm.load, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(ValueError, match=f"{key} must be an int >= 1, got {size!r}"):
            load(tmp_path / "model")


def test_an_encoder_ends_no_text(written: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"stop_ids goes with .* a bert fills blanks, got \[3\]"):
        dlm.load(written("encoder"), stop_ids=[3])


def test_the_name_of_a_link_goes_before_that_of_its_folder(named: Path) -> None:
    link = named.parent / "SDAR-4B-Chat-b8"
    link.symlink_to(named.name)
    assert dlm.load(link).spec.block_size == 8


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
def test_a_subfolder_tells_it(auto: Any, named: Path, tmp_path: Path) -> None:
    network = auto.from_pretrained(named.parent, subfolder=NAME)
    assert (network.config.block_size, block_of(network)) == (16, 16)
    inside = tmp_path / "SDAR-4B-Chat-b8"
    shutil.copytree(named, inside / "weights")
    assert block_of(auto.from_pretrained(inside, subfolder="weights")) == 8


@pytest.mark.parametrize(
    ("family", "name", "block"), [("sdar", NAME, 16), ("a2d-qwen3", "Qwen3-diffusion-bd3lm-v0", 32)]
)
def test_what_is_saved_keeps_it_under_any_name(
    family: str, name: str, block: int, written: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(written(family), tmp_path / name)
    AutoModelForCausalLM.from_pretrained(tmp_path / name).save_pretrained(tmp_path / "mine")
    assert dlm.load(tmp_path / "mine").spec.block_size == block
    dlm.load(tmp_path / name, block_size=2).network.save_pretrained(tmp_path / "other")
    assert dlm.load(tmp_path / "other").spec.block_size == 2


@pytest.mark.parametrize(
    ("family", "name"),
    [("sdar", NAME), ("bd3lm", "bd3lm-owt-block_size16"), ("a2d-qwen3", "Qwen3-diffusion-bd3lm")],
)
def test_what_is_saved_keeps_it_under_the_name_of_another_size(
    family: str, name: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also that of the family, which a released file may hold in vain."""
    shutil.copytree(written(family), tmp_path / "model")
    network: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    size = block_of(network)
    stated = {k: v for k, v in network.config.to_dict().items() if k != SETTLED}
    made: Any = AutoModelForMaskedLM.from_config(type(network.config)(**stated))
    for count, each in enumerate((network, made)):
        folder = tmp_path / str(count) / name
        each.save_pretrained(folder)
        again = AutoModelForMaskedLM.from_pretrained(folder)
        assert (dlm.load(folder).spec.block_size, block_of(again)) == (size, size)
        assert configuration(again) == configuration(made) == configuration(each)


def test_a_size_that_loading_is_told_goes_before_the_name(named: Path, tmp_path: Path) -> None:
    """The family's, too: in memory, and in what is saved."""
    for number, network in enumerate(
        (
            AutoModelForCausalLM.from_pretrained(named, block_size=4),
            AutoModelForCausalLM.from_pretrained(
                named, config=dlm.load(named, block_size=4).network.config
            ),
            dlm.load(named, block_size=4).network,
        )
    ):
        assert (network.config.block_size, block_of(network)) == (4, 4)
        network.save_pretrained(tmp_path / str(number) / NAME)
        assert dlm.load(tmp_path / str(number) / NAME).spec.block_size == 4


def test_a_folder_of_no_name_takes_none_from_where_it_is_used(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(named)
    config = AutoModel.from_pretrained(named.parent, subfolder=NAME).config
    config.block_size, config.name_or_path = 4, ""
    assert block_of(AutoModelForCausalLM.from_config(config)) == 4


def same(model: Model) -> None:
    """Whether `generate` of the network, and `as_model` of it, know what the model knows."""
    assert dlm.as_model(model.network).spec == model.spec
    every: list[dict[str, Any]] = [{}, {"decoder": "threshold", "temperature": 0.8}]
    for options in every:
        rows = dlm.generate(model, IDS.tolist(), gen_length=24, **options).tokens
        out = model.network.generate(
            IDS, max_new_tokens=24, pad_token_id=model.spec.eos_id, **options
        )
        assert out[:, IDS.shape[1] :].tolist() == rows


OPTIONS: list[dict[str, Any]] = [
    {"block_size": 4},
    {"block_size": 2},
    {"mask_id": 40},
    {"stop_ids": [7, 8]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[next(iter(o)) for o in OPTIONS])
@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
def test_what_load_is_told_holds_for_the_network(
    options: dict[str, Any], direct: bool, named: Path
) -> None:
    model = dlm.load(named, direct=direct, **options)
    spec = model.spec
    given = {"block_size": spec.block_size, "mask_id": spec.mask_id, "stop_ids": [*spec.stop_ids]}
    assert options.items() <= given.items()
    same(model)


def test_what_load_is_told_goes_before_generation_config(named: Path) -> None:
    (named / "generation_config.json").write_text('{"eos_token_id": 12, "mask_token_id": 33}')
    assert dlm.load(named).spec.stop_ids == (12, 90)
    same(dlm.load(named))
    model = dlm.load(named, stop_ids=[7], mask_id=40)
    same(model)
    asked = model.network.model_for({"eos_token_id": 12, "mask_token_id": 34}, None).spec
    assert (asked.stop_ids, asked.mask_id) == ((7,), 34)
    assert model.network.model_for({"eos_token_id": 90}, None).spec.stop_ids == (90,)
    (named / "generation_config.json").write_text('{"eos_token_id": [12, 13]}')
    model = dlm.load(named, stop_ids=[7])
    assert model.network.model_for({"eos_token_id": 13}, None).spec.stop_ids == (13,)


def test_blocks_behind_the_prompt_are_remembered(golden_folder: Path, tmp_path: Path) -> None:
    """By whoever asks the network later; nothing of it is saved, as an adapter's configuration."""
    network = dlm.load(golden_folder, block_size=8).network
    spec = dlm.as_model(network).spec
    assert (spec.block_size, spec.anchored) == (8, True)
    ids = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"decoder": "d2f", "cache": "dual"}
    found, plain = (
        dlm.generate(model, ids.tolist(), gen_length=12, **options).tokens
        for model in (dlm.as_model(network), dlm.load(golden_folder))
    )
    assert found != plain
    assert network.generate(ids, max_new_tokens=12, **options)[0, 3:].tolist() == found[0]
    network.save_pretrained(tmp_path)
    assert dlm.load(tmp_path).spec.block_size is None


def test_schedules_are_learned_from_what_decoding_sees(golden_folder: Path) -> None:
    """Of blocks behind prompts of two lengths, the second given the first."""
    model = dlm.load(golden_folder, dtype="float32", block_size=4)
    prompts, span = [[5, 6, 7], [8]], [9, 10, 11, 12]
    mask = model.spec.mask_id
    layout = Layout.of(model, prompts, 12, 4)
    spans = torch.tensor([[*span, *[mask] * 8]] * 2)
    found = layout.logits(spans, [0, 1], 1)
    for row, prompt in enumerate(prompts):
        tokens = torch.tensor([[*prompt, *span, *[mask] * 4]])  # what follows is not seen
        at = torch.arange(tokens.shape[1])
        block = (at - len(prompt)).clamp(min=-1).div(4, rounding_mode="floor")
        sees = (block[None, :] <= block[:, None])[None]
        wanted = model.logits(model.hidden(tokens, at[None], None, attend=sees))[0, -4:]
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-4)
    both_ways = Layout.of(dlm.load(golden_folder, dtype="float32"), prompts, 12, 4)
    assert (both_ways.logits(spans, [0, 1], 1) - found).abs().max() > 0.01


def test_what_needs_other_blocks_refuses_those(golden_folder: Path) -> None:
    model = dlm.load(golden_folder, block_size=8)
    with pytest.raises(ValueError, match=r"prompt_cache must be None for llada: .* begin in it"):
        dlm.PromptCache(model)
    with pytest.raises(ValueError, match="llada cannot be trained so: where its blocks begin"):
        dlm.MaskingCollator(model.spec)
    with pytest.raises(ValueError, match="certainty distillation is not for llada with blocks"):
        check_family(model.spec)
    with pytest.raises(ValueError, match="attn_implementation must be 'sdpa' or 'eager'"):
        dlm.load(golden_folder, block_size=8, attn_implementation="flex_attention")


def test_what_as_model_is_told_holds_for_its_model_alone(named: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(named)
    before = network.config.to_dict()
    model = dlm.as_model(network, block_size=4, mask_id=40)
    assert (model.spec.block_size, model.spec.mask_id) == (4, 40)
    assert network.config.to_dict() == before
    after = dlm.as_model(network).spec
    assert (after.block_size, after.mask_id) == (16, 91)
    network.config.block_size = 4
    assert block_of(network) == 4


@pytest.mark.parametrize(
    ("asked", "stops"),
    [
        (None, (90, 12)),
        (90, (90, 12)),
        (12, (90, 12)),
        ([12, 90], (90, 12)),
        (13, (13,)),
        ([90, 13], (90, 13)),
    ],
)
def test_stop_ids_of_the_checkpoint_leave_all_of_them(
    asked: Any, stops: tuple[int, ...], written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without a generation_config.json, and with an end of turn that only the tokenizer knows."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    shutil.copytree(written("a2d-qwen3"), folder)
    words = {"<|im_end|>" if i == 12 else f"w{i}": i for i in range(96)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    assert not os.path.exists(folder / "generation_config.json")
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert network.model_for({"eos_token_id": asked}, None).spec.stop_ids == stops
