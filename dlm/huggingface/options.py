"""Generation options under transformers' names: which ones apply here, and what they mean.

Options come in layers: the model's configuration, a call's configuration, a call's keywords. Each
layer states an option or leaves it out. The last layer that states it wins.
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
"""Options that ask for what holds anyway: nothing is compiled, probabilities sum to 1."""

NOT_A_LOOP = "it belongs to decoding from left to right"
NEUTRAL = {"guidance_scale": 1.0}
"""Values without effect, for options that are None in transformers unless stated."""

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
"""What to do instead of using options that cannot work."""

FOREIGN = {
    **foreign.OPTIONS,
    **dict.fromkeys((*foreign.LENGTHS, "gen_length"), "here it is max_new_tokens"),
    **dict.fromkeys(("stop", "until"), "here it is stop_strings"),
    "mask_id": "here it is mask_token_id",
    "eos_id": "here it is eos_token_id",
    "n": "here it is num_return_sequences",
}
"""What to say about names that are neither transformers' nor dlm's."""

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
"""Arguments of transformers' `generate` that are not options of its configuration."""


@cache
def own() -> Mapping[str, Any]:
    """Options of `dlm.generate` that keep their names, and the mask id, with their defaults."""
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    shared = {"gen_length", "stop", *MEANT}
    return {k: v for k, v in defaults.items() if k not in shared} | {MASK: None}


@cache
def inherited() -> frozenset[str]:
    """Options of transformers' configuration, whether or not they apply here."""
    names = vars(GenerationConfig())
    return frozenset(n for n in names if not n.startswith("_") and n != "transformers_version")


def stated(config: GenerationConfig) -> dict[str, Any]:
    """Options that a configuration states. For an option of transformers, None states nothing."""
    return {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_")
        and name != "transformers_version"
        and not (value is None and name in inherited())
    }


def of_file(options: Layer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options of a `generation_config.json` into those that count and the rest.

    Options of transformers and the mask id always count. A released file may also configure the
    loop of the code beside it, under names of its own or under names of dlm with another meaning
    (`steps` of Dream). Options of dlm therefore count only in a file that names a `decoder`, as the
    files that dlm writes do.
    """
    ours = own() if "decoder" in options else (MASK,)
    counted = {k: v for k, v in options.items() if k in inherited() or k in ours}
    return counted, {k: v for k, v in options.items() if k not in counted}


def to_file(options: Layer, aside: Layer) -> dict[str, Any]:
    """What to write so that `of_file` returns the options of dlm and the ignored keys again.

    If options of dlm are stated, ignored keys with names of such options are dropped: in the file,
    the two could not be told apart.
    """
    if not (options.keys() & own().keys()) - {MASK}:
        return {**aside, **options}
    kept = {k: v for k, v in aside.items() if k not in own()}
    return {**kept, "decoder": own()["decoder"], **options}


def refuse(options: Layer) -> None:
    """Refuse unknown options, and options that would be ignored.

    Raises:
        ValueError: a name is unknown (the message names the closest match), or an option of
            transformers that cannot work with masked diffusion has another than its neutral value.
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
    """Refuse arguments of transformers' `generate`, except placeholders.

    Raises:
        ValueError: an argument is no placeholder, or a name is unknown.
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
    """Merge layers of options; on each matter the last layer wins.

    Raises:
        ValueError: a layer contradicts itself.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        check_sampling(layer)
        check_cache(layer)
        gone = displaced(layer, merged)
        merged = {k: v for k, v in merged.items() if k not in gone} | dict(layer)
    return merged


def displaced(layer: Layer, before: Layer) -> set[str]:
    """Options of earlier layers that this one overrides without naming them.

    `do_sample` and `temperature` concern one matter, as do `max_length` and `max_new_tokens`, and
    `use_cache` and `cache`. Turning sampling off also drops the filters of earlier layers.
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
    """Refuse a layer that both asks for a cache and forbids it.

    Raises:
        ValueError: `use_cache` and `cache` contradict each other.
    """
    if layer.get("use_cache") is False and layer.get("cache", "none") != "none":
        raise ValueError(f"use_cache=False forbids a cache, got cache={layer['cache']!r}")


def check_sampling(layer: Layer) -> None:
    """Refuse a layer that both turns sampling on and off.

    Raises:
        ValueError: `do_sample` and `temperature` contradict each other.
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
    """Whether tokens are sampled: `do_sample` or, if that is not stated, a temperature above 0."""
    sample = options.get("do_sample")
    return bool(options.get("temperature")) if sample is None else bool(sample)


def new_tokens(options: Layer, columns: int) -> int:
    """Tokens to decode after `columns` columns of prompt and padding: the smaller stated bound.

    Raises:
        ValueError: `max_length` leaves no room, or an option is not an int.
    """
    bounds = []
    if options.get("max_new_tokens") is not None:
        bounds.append(integer("max_new_tokens", options["max_new_tokens"], least=1))
    if options.get("max_length") is not None:
        # Tokenizers without a limit report 1e30.
        longest = integer("max_length", options["max_length"], least=1, most=int(1e30))
        if longest <= columns:
            raise ValueError(
                f"max_length must leave room behind the prompt's {columns} columns, got {longest}"
            )
        bounds.append(longest - columns)
    return min(bounds, default=Settings().gen_length)


def copies(options: Layer) -> int:
    """Number of rows to decode for each prompt.

    Raises:
        ValueError: it is not an int of at least 1, or it is above 1 without sampling, where all
            rows would be the same.
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
    """Translate one layer of transformers' options to the options of `dlm.generate`.

    Args:
        options: the stated options.
        columns: prompt columns, padding included; `max_length` counts them.
        count: rows per prompt.

    Raises:
        ValueError: as `refuse`, `check_sampling`, `check_cache`, `copies`, `new_tokens` and
            `Settings`.
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
        del given["top_k"]  # 0 means no filter in transformers
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
