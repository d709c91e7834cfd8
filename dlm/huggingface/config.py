"""The configuration of `model.generate`, stored as `generation_config.json`."""

import json
from collections.abc import Mapping
from typing import Any, Self

from transformers.generation.configuration_utils import GenerationConfig

from dlm.huggingface.options import (
    merge,
    of_file,
    own,
    refuse,
    samples,
    settings,
    stated,
    to_file,
)
from dlm.options import known
from dlm.settings import FILTERS


class DiffusionGenerationConfig(GenerationConfig):
    """Generation options: those of `dlm.generate`, and those of transformers that apply here.

    Options of `dlm.generate` keep their names and defaults, except that `gen_length` and `stop` go
    by transformers' names `max_new_tokens` and `stop_strings`, and that `batch_size` and
    `prompt_cache` are missing. `docs/huggingface.md` lists what each option of transformers means.

    An option that would be ignored is refused: when a configuration is created, when a changed one
    is saved, and when `generate` uses it. A configuration read from a file is not checked until it
    is used, so that any checkpoint loads. Keys of the file that are no options here (see `of_file`)
    are ignored, and written back when the configuration is saved.

    Raises:
        ValueError: an option is unknown (the message names the closest match), breaks its rule, or
            cannot work with masked diffusion.
    """

    def __init__(self, **options: Any) -> None:
        check({k: v for k, v in options.items() if not internal(k)})
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        """The default of an option that is not stated; stated options are attributes."""
        if name in own():
            return own()[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Check a configuration that has changed since it was read.

        Args:
            strict: whether to check at all; transformers sets it before saving.
            user_set_attributes: ignored, part of transformers' signature.

        Raises:
            ValueError: as when a configuration is created.
        """
        read = self.__dict__.get("_original_object_hash")
        if strict and (read is None or read != hash(self)):
            check(stated(self))

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Set the options that exist, and return the others.

        With `defaults_only`, set only options that are not stated. Whether to sample always counts
        as stated, as pipelines would otherwise turn sampling on for every model.
        """
        kept = options
        if defaults_only:
            skip = {"do_sample"}
            if not samples(stated(self)):
                skip |= {"temperature", *FILTERS}
            kept = {k: v for k, v in options.items() if k not in skip}
        rest: dict[str, Any] = super().update(  # type: ignore[no-untyped-call]
            defaults_only=defaults_only, allow_custom_entries=allow_custom_entries, **kept
        )
        return rest

    def to_dict(self) -> dict[str, Any]:
        """What to save: the stated options, whether they sample, and the keys that were ignored."""
        output: dict[str, Any] = super().to_dict()
        output.pop("_aside", None)
        output["do_sample"] = samples(output)
        return to_file(output, left_aside(self))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a configuration from the contents of a file, unchecked: `generate` checks it.

        Args:
            config_dict: contents of a file; `of_file` decides which keys count.
            **kwargs: options that override those of the file, and transformers' own flags.

        Returns:
            The configuration; with `return_unused_kwargs`, also the keywords that are no options.

        Raises:
            ValueError: `kwargs` has an unknown option, and unused ones are not returned.
        """
        both = kwargs.pop("return_unused_kwargs", False)
        counted, aside = of_file({k: v for k, v in config_dict.items() if not internal(k)})
        asked = {k: v for k, v in kwargs.items() if not (internal(k) or (v is None and k in aside))}
        config = cls()
        config.__dict__.update(counted, _aside=aside)
        unused = config.update(**asked)
        config.__dict__["_original_object_hash"] = hash(config)
        if both:
            return config, unused
        for name in unused:
            known("option", name, own())
        return config

    @classmethod
    def from_model_config(cls, model_config: Any) -> Self:
        """Take the special tokens from `config.json`, which has no other generation options."""
        facts = model_config if isinstance(model_config, Mapping) else model_config.to_dict()
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        config: Self = cls.from_dict({n: facts[n] for n in names if facts.get(n) is not None})
        return config

    @classmethod
    def of(cls, config: GenerationConfig) -> Self:
        """Convert any configuration of transformers, keeping all that it states."""
        made = cls()
        made.__dict__.update(stated(config), _aside=left_aside(config))
        made.__dict__["_original_object_hash"] = hash(made)
        return made


def left_aside(config: GenerationConfig) -> dict[str, Any]:
    """Keys in the file of a configuration that are no options here."""
    return dict(vars(config).get("_aside", {}))


def internal(name: str) -> bool:
    """Whether transformers stores this name beside the options."""
    return name.startswith("_") or name == "transformers_version"


def check(options: Mapping[str, Any]) -> None:
    """Check options that are to be stored in a file.

    Raises:
        ValueError: as `refuse`, `merge` and `settings`; or the decoder is not given by name, or
            JSON cannot hold a value.
    """
    refuse(options)
    if not isinstance(options.get("decoder", ""), str):
        raise ValueError(
            f"decoder of a configuration must be a name, got {options['decoder']!r}: "
            "generate takes an instance as a keyword"
        )
    try:
        json.dumps({name: options[name] for name in own() if name in options})
    except (TypeError, ValueError) as error:
        raise ValueError(
            "a configuration must hold what JSON can hold, give the rest to generate as a "
            f"keyword: {error}"
        ) from error
    settings(merge(options))
