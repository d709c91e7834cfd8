"""What transformers' options come to: the last word counts, nothing is dropped in silence."""

from dataclasses import fields
from typing import Any

import pytest

from dlm.huggingface.options import (
    ARGUMENTS,
    HELD,
    INSTEAD,
    MEANT,
    inherited,
    merge,
    own,
    refuse,
    refuse_arguments,
    settings,
)
from dlm.settings import Settings


def test_every_option_of_generate_is_known_by_its_name_and_default() -> None:
    shared = {"gen_length", "temperature", "top_k", "top_p", "min_p"}
    shared |= {"suppress_tokens", "begin_suppress_tokens", "stop"}
    expected = {f.name: f.default for f in fields(Settings) if f.init and f.name not in shared}
    assert {k: v for k, v in own().items() if k != "mask_token_id"} == expected
    assert not set(own()) & inherited(), "a name would mean two things"
    assert set(MEANT) | set(HELD) <= inherited()
    assert set(INSTEAD) <= inherited() | set(ARGUMENTS)


def test_nothing_stated_is_what_generate_does() -> None:
    assert settings({}) == Settings()


@pytest.mark.parametrize(
    ("layers", "temperature", "top_k"),
    [
        ([{}], 0.0, None),
        ([{"temperature": 0.7}], 0.7, None),
        ([{"do_sample": True}], 1.0, None),
        ([{"do_sample": False, "top_k": 5}], 0.0, 5),
        ([{"do_sample": True, "temperature": 0.6, "top_k": 20}, {"do_sample": False}], 0.0, None),
        ([{"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0}], 0.0, 20),
        ([{"do_sample": True, "temperature": 0.6, "top_k": 20}, {"top_k": None}], 0.6, None),
        ([{"do_sample": True, "temperature": 0.6, "top_k": 20}, {"top_k": 0}], 0.6, None),
        ([{"do_sample": True, "temperature": 0.6}, {"temperature": None}], 1.0, None),
        ([{"do_sample": False}, {"temperature": 0.4}], 0.4, None),
        ([{"temperature": 0.0}, {"do_sample": True}], 1.0, None),
        ([{"temperature": 0.3}, {"do_sample": True}], 0.3, None),
        ([{"do_sample": False}, {"do_sample": None}], 0.0, None),
    ],
)
def test_the_last_word_on_sampling_counts(
    layers: list[dict[str, Any]], temperature: float, top_k: int | None
) -> None:
    made = settings(merge(*layers))
    assert (made.temperature, made.top_k) == (temperature, top_k)


@pytest.mark.parametrize(
    ("layers", "columns", "length"),
    [
        ([{}], 9, 256),
        ([{"max_new_tokens": 12}], 9, 12),
        ([{"max_length": 12}], 9, 3),
        ([{"max_length": 12, "max_new_tokens": 2}], 9, 2),
        ([{"max_length": 12, "max_new_tokens": 20}], 9, 3),
        ([{"max_length": int(1e30), "max_new_tokens": 20}], 9, 20),
        ([{"max_new_tokens": 2}, {"max_length": 20}], 9, 11),
        ([{"max_length": 20}, {"max_new_tokens": 64}], 9, 64),
    ],
)
def test_the_last_word_on_length_counts(
    layers: list[dict[str, Any]], columns: int, length: int
) -> None:
    assert settings(merge(*layers), columns).gen_length == length


@pytest.mark.parametrize(
    ("layers", "cache", "every"),
    [
        ([{"use_cache": False}, {"cache": "dual"}], "dual", None),
        ([{"cache": "dual", "refresh_every": 4}, {"use_cache": False}], "none", None),
        ([{"cache": "dual", "refresh_every": 4}, {"use_cache": True}], "dual", 4),
        ([{"cache": "dual", "refresh_every": 4}, {"cache": "prefix"}], "prefix", None),
        ([{"cache": "dual"}, {"refresh_every": 3}], "dual", 3),
        ([{"cache": "dual", "refresh_around": 8}, {"cache": "prefix"}], "prefix", None),
        ([{"cache": "dual", "refresh_around": 8}, {"use_cache": False}], "none", None),
        ([{"cache": "dual", "refresh_prompt_every": 8}, {"cache": "prefix"}], "prefix", None),
        ([{"use_cache": True}], "none", None),
    ],
)
def test_the_last_word_on_caches_counts(
    layers: list[dict[str, Any]], cache: str, every: int | None
) -> None:
    made = settings(merge(*layers))
    assert (made.cache, made.refresh_every, made.refresh_around) == (cache, every, 0)
    assert made.refresh_prompt_every is None


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"repetition_penalty": 1.1},
        {"typical_p": 0.9},
        {"no_repeat_ngram_size": 3},
        {"guidance_scale": 1.5},
        {"max_time": 3.0},
        {"min_new_tokens": 5},
        {"bad_words_ids": [[3]]},
        {"output_scores": True},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"forced_eos_token_id": 2},
        {"watermarking_config": {"bias": 2.5}},
        {"early_stopping": True},
        {"penalty_alpha": 0.6},
        {"constraints": [1]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} cannot work with masked diffusion, got"):
        settings(options)


def test_neutral_values_of_transformers_pass() -> None:
    refuse(
        {
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "min_length": 0,
            "min_new_tokens": 0,
            "no_repeat_ngram_size": 0,
            "typical_p": 1.0,
            "guidance_scale": 1.0,
            "early_stopping": False,
            "output_scores": False,
            "num_assistant_tokens": 20,
            "bad_words_ids": [],
            "disable_compile": True,
            "use_cache": True,
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blok_length": 8}, "unknown option 'blok_length'. Did you mean 'block_length'"),
        ({"gen_length": 8}, "unknown option 'gen_length'"),
        ({"decoder": "sabre"}, "unknown decoder 'sabre'. Did you mean 'saber'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int >= 1"),
        ({"max_length": 9}, "max_length must leave room behind the prompt's 9 columns, got 9"),
        ({"do_sample": False, "temperature": 0.7}, "contradict each other"),
        ({"do_sample": True, "temperature": 0.0}, "contradict each other"),
        ({"do_sample": 1, "temperature": 0.5}, "do_sample must be True or False"),
        ({"do_sample": "no"}, "do_sample must be True or False"),
        ({"use_cache": False, "cache": "dual"}, "use_cache=False forbids a cache"),
        ({"use_cache": 0}, "use_cache must be True or False"),
        ({"return_dict_in_generate": 1}, "return_dict_in_generate must be True or False"),
        ({"num_return_sequences": 2}, "must be 1 at temperature 0"),
        ({"num_return_sequences": 0}, "num_return_sequences must be an int >= 1"),
        ({"temperature": "hot"}, "temperature must be a finite number"),
        ({"top_k": -1}, "top_k must be an int >= 1"),
        ({"top_k": False}, "top_k must be an int >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(options, columns=9)


def test_one_layer_must_not_contradict_itself() -> None:
    with pytest.raises(ValueError, match="use_cache=False forbids a cache"):
        merge({"use_cache": False, "cache": "dual"}, {"cache": "none"})
    with pytest.raises(ValueError, match=r"do_sample=False and temperature=0\.7 contradict"):
        merge({"do_sample": False, "temperature": 0.7}, {"do_sample": True})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_another_loop(name: str) -> None:
    refuse_arguments({name: None})
    refuse_arguments({name: []})
    with pytest.raises(ValueError, match=f"{name} cannot work with masked diffusion"):
        refuse_arguments({name: object()})


def test_unknown_argument() -> None:
    with pytest.raises(ValueError, match="Did you mean 'attention_mask'"):
        refuse_arguments({"attn_mask": None})
