"""Options under transformers' names: which of them mean something here, and what.

Options come in layers: the model's configuration, a call's, a call's keywords. In each layer an
option is stated or not; what is said last counts.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from transformers.generation.configuration_utils import GenerationConfig

from dlm import foreign
from dlm.given import listed
from dlm.options import boolean, integer, known
from dlm.settings import FILTERS, REFRESHES, Settings

Layer = Mapping[str, Any]

MEANT = (
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    *FILTERS,
    "suppress_tokens",
    "begin_suppress_tokens",
    "num_return_sequences",
    "return_dict_in_generate",
    "use_cache",
    "stop_strings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Options of transformers that do here what their names say."""

MASK = "mask_token_id"
HELD = ("disable_compile", "renormalize_logits")
"""Options that ask for what is so anyway: nothing is compiled, probabilities add up to 1."""

NOT_A_LOOP = "it belongs to decoding from left to right"
NEUTRAL = {"guidance_scale": 1.0}
"""Values that change nothing, of options that transformers has None for unless they are stated."""

INSTEAD = {
    "assistant_model": "no other model drafts tokens here; see the decoders for doing with fewer "
    "forwards",
    "bad_words_ids": "suppress_tokens keeps single ids away",
    "cache_config": "cache='prefix' or 'dual' is what there is",
    "cache_implementation": "cache='prefix' or 'dual' is what there is",
    "custom_generate": "a decoder class is the way to change how positions are chosen",
    "encoder_repetition_penalty": "probabilities are the model's own",
    "guidance_scale": "cfg_scale = guidance_scale - 1 guides against a masked prompt",
    "inputs_embeds": "a canvas is made of token ids",
    "logits_processor": "logit_bias, suppress_tokens, temperature and filters change logits",
    "max_cache_len": "cache='prefix' or 'dual' is what there is",
    "max_time": "steps bounds the forwards of a row",
    "min_length": "stop_at_eos=False or confidence_eos_eot_inf=True delays the end",
    "min_new_tokens": "stop_at_eos=False or confidence_eos_eot_inf=True delays the end",
    "no_repeat_ngram_size": "probabilities are the model's own",
    "output_attentions": "return_trajectory=True keeps what each forward saw and changed",
    "output_hidden_states": "return_trajectory=True keeps what each forward saw and changed",
    "output_logits": "return_trajectory=True keeps what each forward saw and changed",
    "output_scores": "return_trajectory=True keeps what each forward saw and changed",
    "past_key_values": "cache='prefix' or 'dual' is what there is",
    "position_ids": "padding is told by attention_mask",
    "repetition_penalty": "probabilities are the model's own",
    "sequence_bias": "logit_bias and suppress_tokens are for single ids",
    "stopping_criteria": "a row ends at a stop token, see stop_at_eos and eos_token_id",
    "token_type_ids": "the network takes none",
}
"""What to do instead of what cannot be done."""

FOREIGN = {
    **foreign.OPTIONS,
    **dict.fromkeys((*foreign.LENGTHS, "gen_length"), "here it is max_new_tokens"),
    **dict.fromkeys(("stop", "until"), "here it is stop_strings"),
    "mask_id": "here it is mask_token_id",
    "eos_id": "here it is eos_token_id",
    "n": "here it is num_return_sequences",
}
"""What to say of names that are neither transformers' nor ours."""

ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "inputs_embeds",
    "logits_processor",
    "negative_prompt_attention_mask",
    "negative_prompt_ids",
    "past_key_values",
    "position_ids",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "synced_gpus",
    "token_type_ids",
)
"""Arguments of transformers' `generate` that are no options of its configuration."""


@cache
def own() -> Mapping[str, Any]:
    """Options of `dlm.generate` by name, and the mask id, with their defaults."""
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    shared = {"gen_length", "stop", *MEANT}
    return {k: v for k, v in defaults.items() if k not in shared} | {MASK: None}


@cache
def inherited() -> frozenset[str]:
    """Options that transformers' configuration has, whether they mean something here or not."""
    names = vars(GenerationConfig())
    return frozenset(n for n in names if not n.startswith("_") and n != "transformers_version")


def stated(config: GenerationConfig) -> dict[str, Any]:
    """What a configuration says; None says nothing where transformers named the option."""
    return {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_")
        and name != "transformers_version"
        and not (value is None and name in inherited())
    }


def of_file(options: Layer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a `generation_config.json` that count here, and those that are left aside.

    transformers' own options and the mask id always count. A released file may also configure the
    loop of the code beside it, under names of its own or under ours in another sense (`steps` of
    Dream). So our options count in a file that names a `decoder`, as those that we write do.
    """
    ours = own() if "decoder" in options else (MASK,)
    counted = {k: v for k, v in options.items() if k in inherited() or k in ours}
    return counted, {k: v for k, v in options.items() if k not in counted}


def to_file(options: Layer, aside: Layer) -> dict[str, Any]:
    """What to write so that `of_file` gives options of ours back, with those left aside.

    Options left aside whose names are ours are dropped once options of ours are among them, which
    they could not be told from.
    """
    if not (options.keys() & own().keys()) - {MASK}:
        return {**aside, **options}
    kept = {k: v for k, v in aside.items() if k not in own()}
    return {**kept, "decoder": own()["decoder"], **options}


def refuse(options: Layer) -> None:
    """Refuse what is unknown, and what would be ignored.

    Raises:
        ValueError: an unknown name, with the close match; or an option of transformers that
            cannot work with masked diffusion, at another value than its neutral one.
    """
    neutral = GenerationConfig._get_default_generation_params() | NEUTRAL
    for name, value in options.items():
        if name in MEANT or name in HELD or name in own():
            continue
        if name not in inherited():
            known("option", name, [*own(), *MEANT], FOREIGN)
        empty = isinstance(value, list | tuple | dict) and not value
        if not (value is None or value is False or empty or value == neutral.get(name, 0)):
            raise ValueError(
                f"{name} cannot work with masked diffusion, got {value!r}: "
                f"{INSTEAD.get(name, NOT_A_LOOP)}"
            )


def refuse_arguments(arguments: Layer) -> None:
    """Refuse arguments of transformers' `generate` that are more than a placeholder.

    Raises:
        ValueError: one is, or a name is unknown.
    """
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            taken = [*own(), *MEANT, "attention_mask", "input_ids", "tokenizer"]
            known("option", name, taken, FOREIGN)
        placeholder = value is None or value is False or (isinstance(value, list) and not value)
        if not placeholder:
            raise ValueError(
                f"{name} cannot work with masked diffusion: {INSTEAD.get(name, NOT_A_LOOP)}"
            )


def merge(*layers: Layer) -> dict[str, Any]:
    """One layer out of several, the last word on each matter counting.

    Raises:
        ValueError: one layer contradicts itself.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        check_sampling(layer)
        check_cache(layer)
        gone = displaced(layer, merged)
        merged = {k: v for k, v in merged.items() if k not in gone} | dict(layer)
    return merged


def displaced(layer: Layer, before: Layer) -> set[str]:
    """Options of earlier layers that this one overrules without naming them.

    `do_sample` and `temperature` speak of one matter, so do `max_length` and `max_new_tokens`,
    and `use_cache` and `cache`. Not to sample takes the filters of earlier layers away too.
    """
    gone: set[str] = set()
    if layer.get("do_sample") is False:
        gone |= {"temperature", *FILTERS}
    elif layer.get("do_sample") is True and not before.get("temperature"):
        gone |= {"temperature"}
    elif layer.get("temperature") is not None:
        gone |= {"do_sample"}
    if "max_length" in layer or "max_new_tokens" in layer:
        gone |= {"max_length", "max_new_tokens"}
    if layer.get("use_cache") is False:
        gone |= {"cache", *REFRESHES}
    elif "cache" in layer:
        gone |= {"use_cache", *REFRESHES}
    return gone


def check_cache(layer: Layer) -> None:
    """Refuse a layer that asks for a cache and forbids it.

    Raises:
        ValueError: `use_cache` and `cache` disagree.
    """
    if layer.get("use_cache") is False and layer.get("cache", "none") != "none":
        raise ValueError(f"use_cache=False forbids a cache, got cache={layer['cache']!r}")


def check_sampling(layer: Layer) -> None:
    """Refuse a layer that wants to sample and does not.

    Raises:
        ValueError: `do_sample` and `temperature` disagree.
    """
    sample, temperature = layer.get("do_sample"), layer.get("temperature")
    if sample is None or temperature is None:
        return
    if boolean("do_sample", sample) != bool(temperature):
        raise ValueError(
            f"do_sample={sample} and temperature={temperature!r} contradict each other: "
            "temperature 0 is what do_sample=False means"
        )


def samples(options: Layer) -> bool:
    """Whether tokens are drawn: `do_sample`, or a temperature above 0 where that is not stated."""
    sample = options.get("do_sample")
    return bool(options.get("temperature")) if sample is None else bool(sample)


def new_tokens(options: Layer, columns: int) -> int:
    """Tokens to decode behind `columns` of prompt, padding included: the smaller bound stated.

    Raises:
        ValueError: none is left, or an option is no int.
    """
    bounds = []
    if options.get("max_new_tokens") is not None:
        bounds.append(integer("max_new_tokens", options["max_new_tokens"], least=1))
    if options.get("max_length") is not None:
        # A tokenizer that knows no limit says that it is 1e30.
        longest = integer("max_length", options["max_length"], least=1, most=int(1e30))
        if longest <= columns:
            raise ValueError(
                f"max_length must leave room behind the prompt's {columns} columns, got {longest}"
            )
        bounds.append(longest - columns)
    return min(bounds, default=Settings().gen_length)


def copies(options: Layer) -> int:
    """Rows that each prompt is decoded to.

    Raises:
        ValueError: it is no int of at least 1, or they would all be the same.
    """
    count = options.get("num_return_sequences")
    if count is None:
        return 1
    if integer("num_return_sequences", count, least=1) > 1 and not samples(options):
        raise ValueError(
            f"num_return_sequences must be 1 at temperature 0, where all would be the same, "
            f"got {count}"
        )
    return int(count)


def settings(options: Layer, columns: int = 0, count: int = 1) -> Settings:
    """The options of `dlm.generate` that one layer of transformers' options comes to.

    Args:
        options: what is stated.
        columns: of the prompt, padding included; `max_length` counts them.
        count: rows of a prompt.

    Raises:
        ValueError: as `refuse`, `copies`, `new_tokens` and `Settings`.
    """
    refuse(options)
    check_sampling(options)
    check_cache(options)
    copies(options)
    given = {name: options[name] for name in own() if name in options and name != MASK}
    for name in (*FILTERS, "suppress_tokens", "begin_suppress_tokens"):
        if options.get(name) is not None:
            given[name] = options[name]
    if options.get("stop_strings") is not None:
        given["stop"] = options["stop_strings"]
    if given.get("top_k") == 0 and given["top_k"] is not False:
        del given["top_k"]  # transformers' word for none
    languages = listed(given.get("constraint"))
    if isinstance(languages, list | tuple):
        given["constraint"] = [one for one in languages for _ in range(count)]
    temperature = options.get("temperature")
    if temperature is None:
        temperature = 1.0 if samples(options) else 0.0
    for name in ("do_sample", "use_cache", "return_dict_in_generate"):
        if options.get(name) is not None:
            boolean(name, options[name])
    return Settings(gen_length=new_tokens(options, columns), temperature=temperature, **given)
