"""The configuration is made checked, written as it is said, and read back the same."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import dlm
from dlm import DiffusionGenerationConfig
from dlm.decoders import make
from dlm.huggingface.config import left_aside
from dlm.huggingface.options import settings, stated
from dlm.models.model import Model
from dlm.settings import Settings

STATED: dict[str, Any] = {
    "decoder": "threshold",
    "decoder_options": {"threshold": 0.8},
    "block_length": None,
    "max_new_tokens": 40,
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.05,
    "row_keys": [3, 4],
    "suppress_tokens": [5],
    "eos_token_id": [1, 4],
    "seed": 7,
    "cache": "dual",
    "refresh_every": 2,
    "refresh_around": 8,
    "refresh_prompt_every": 64,
    "refresh_decoded_every": 16,
    "suffix_window": 12,
}


def test_round_trip(tmp_path: Path) -> None:
    config = DiffusionGenerationConfig(**STATED)
    config.save_pretrained(tmp_path)
    again = DiffusionGenerationConfig.from_pretrained(tmp_path)
    assert type(again) is DiffusionGenerationConfig
    assert again == config
    assert stated(again) == STATED | {"do_sample": True}
    assert again.block_length is None
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == STATED | {
        "do_sample": True,
        "transformers_version": written["transformers_version"],
    }
    assert json.loads(config.to_json_string(ignore_metadata=True)) == STATED | {"do_sample": True}
    assert "threshold" in repr(config)


def test_biases_come_back_from_a_file(tmp_path: Path) -> None:
    """Where their ids are texts."""
    config = DiffusionGenerationConfig(decoder="random", logit_bias={5: 1.5, 12: -2.0})
    config.save_pretrained(tmp_path)
    again = DiffusionGenerationConfig.from_pretrained(tmp_path)
    assert settings(stated(again)).biases == settings(stated(config)).biases
    assert settings(stated(again)).biases == ((5, 1.5), (12, -2.0))


def test_transformers_own_class_reads_it(tmp_path: Path) -> None:
    DiffusionGenerationConfig(temperature=0.7).save_pretrained(tmp_path)
    plain = GenerationConfig.from_pretrained(tmp_path)
    assert (plain.do_sample, plain.temperature) == (True, 0.7)


def test_defaults_are_those_of_generate() -> None:
    config = DiffusionGenerationConfig()
    for name in ("decoder", "block_length", "steps", "cache", "seed", "stop_at_eos"):
        assert getattr(config, name) == getattr(Settings(), name)
    with pytest.raises(AttributeError, match="no attribute 'gen_length'"):
        _ = config.gen_length
    assert not hasattr(config, "gen_length")


def test_pipelines_are_told_not_to_sample() -> None:
    assert DiffusionGenerationConfig().to_diff_dict()["do_sample"] is False
    config = DiffusionGenerationConfig()
    left = config.update(do_sample=True, temperature=0.7, pad_token_id=3, defaults_only=True)
    assert (config.do_sample, config.temperature, config.pad_token_id) == (None, None, 3)
    assert left == {}
    config = DiffusionGenerationConfig(do_sample=True)
    config.update(temperature=0.7, defaults_only=True)
    assert config.temperature == 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steeps": 3}, "unknown option 'steeps'. Did you mean 'steps'"),
        ({"steps": 0}, "steps must be an int >= 1"),
        ({"num_beams": 2}, "num_beams cannot work with masked diffusion"),
        ({"decoder": make("saber")}, "decoder of a configuration must be a name"),
        ({"decoder_options": {"n": 2}}, "unknown option of low_confidence 'n'"),
        (
            {"decoder": "pc_sampler", "decoder_options": {"frequencies": object()}},
            "must hold what JSON can hold",
        ),
        ({"do_sample": False, "temperature": 1.0}, "contradict each other"),
    ],
)
def test_bad_options_are_refused_when_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(**options)


def test_a_changed_configuration_is_checked_when_saved(tmp_path: Path) -> None:
    config = DiffusionGenerationConfig()
    config.num_beams = 3
    with pytest.raises(ValueError, match="num_beams cannot work"):
        config.save_pretrained(tmp_path)


def file(folder: Path, options: dict[str, Any]) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(options))
    return folder


def test_any_file_loads_and_saves_back(tmp_path: Path) -> None:
    """Weights must load whatever lies beside them: `generate` refuses what it cannot do."""
    options = {"repetition_penalty": 1.05, "eos_token_id": 2}
    config: Any = DiffusionGenerationConfig.from_pretrained(file(tmp_path, options))
    assert stated(config) == options
    config.save_pretrained(tmp_path / "again")
    assert stated(DiffusionGenerationConfig.from_pretrained(tmp_path / "again")) == options | {
        "do_sample": False
    }
    config.seed = 3
    with pytest.raises(ValueError, match="repetition_penalty cannot work"):
        config.save_pretrained(tmp_path / "changed")


FOREIGN: dict[str, Any] = {"alg": "origin", "eps": 1e-3, "steps": 512, "decoder_dim": 3}
COMMON = {"temperature": 0.4, "eos_token_id": 2, "mask_token_id": 9}


def test_options_of_other_code_are_left_aside(tmp_path: Path) -> None:
    """Even those of our names: `steps` counts otherwise in Dream's loop."""
    config: Any = DiffusionGenerationConfig.from_pretrained(file(tmp_path, FOREIGN | COMMON))
    assert stated(config) == COMMON
    assert left_aside(config) == FOREIGN
    assert config.steps is None
    assert not hasattr(config, "alg")
    for copied in (copy.deepcopy(config), DiffusionGenerationConfig.of(config)):
        assert (stated(copied), left_aside(copied)) == (COMMON, FOREIGN)
        assert copied == config


def test_options_left_aside_are_written_again(tmp_path: Path) -> None:
    config: Any = DiffusionGenerationConfig.from_pretrained(file(tmp_path, FOREIGN | COMMON))
    config.save_pretrained(tmp_path / "again")
    again: Any = DiffusionGenerationConfig.from_pretrained(tmp_path / "again")
    assert (stated(again), left_aside(again)) == (COMMON | {"do_sample": True}, FOREIGN)
    assert "decoder" not in json.loads((tmp_path / "again/generation_config.json").read_text())
    again.seed = 3
    again.save_pretrained(tmp_path / "ours")
    ours: Any = DiffusionGenerationConfig.from_pretrained(tmp_path / "ours")
    expected = {"seed": 3, "decoder": "low_confidence", "do_sample": True}
    assert stated(ours) == COMMON | expected
    assert left_aside(ours) == {k: v for k, v in FOREIGN.items() if k != "steps"}


def test_a_file_that_names_a_decoder_is_ours(tmp_path: Path) -> None:
    options = {"decoder": "saber", "steps": 8, "seed": 2}
    config = DiffusionGenerationConfig.from_pretrained(file(tmp_path, options | {"alg": "x"}))
    assert stated(config) == options
    assert left_aside(config) == {"alg": "x"}


def test_keywords_lift_what_is_left_aside(tmp_path: Path) -> None:
    folder = file(tmp_path, FOREIGN)
    config = DiffusionGenerationConfig.from_pretrained(folder, alg=None, steps=4)
    assert stated(config) == {"steps": 4}
    with pytest.raises(ValueError, match="unknown option 'alg'"):
        DiffusionGenerationConfig.from_pretrained(folder, alg="entropy")
    with pytest.raises(ValueError, match="unknown option 'algo'"):
        DiffusionGenerationConfig.from_pretrained(folder, algo=None)


def test_keywords_go_before_the_file(tmp_path: Path) -> None:
    DiffusionGenerationConfig(**STATED).save_pretrained(tmp_path)
    config: Any = DiffusionGenerationConfig.from_pretrained(tmp_path, seed=9, max_new_tokens=3)
    assert (config.seed, config.max_new_tokens, config.decoder) == (9, 3, "threshold")
    with pytest.raises(ValueError, match=r"unknown option 'sed'\. Did you mean 'seed'"):
        DiffusionGenerationConfig.from_pretrained(tmp_path, sed=9)
    both: Any = DiffusionGenerationConfig.from_pretrained(
        tmp_path, sed=9, return_unused_kwargs=True
    )
    assert both[1] == {"sed": 9}


def test_model_configurations_give_their_special_tokens(golden: Model) -> None:
    config = DiffusionGenerationConfig.from_model_config(golden.network.config)
    assert stated(config) == {"eos_token_id": 508, "pad_token_id": 508}
    facts = {"eos_token_id": [1, 4], "use_cache": True, "temperature": 0.7}
    assert stated(DiffusionGenerationConfig.from_model_config(facts)) == {"eos_token_id": [1, 4]}


def test_public_names_are_lazy() -> None:
    for name in ("DiffusionGenerationConfig", "TextDiffusionStreamer", "as_model"):
        assert name in dlm.__all__
        assert getattr(dlm, name).__module__.startswith("dlm.huggingface.")
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = __import__("dlm.huggingface").huggingface.Nothing
