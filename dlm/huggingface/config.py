"""The configuration of `model.generate`, as transformers keeps it: `generation_config.json`."""

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
    """Options of `dlm.generate` beside those of transformers that mean something here.

    Every option of `dlm.generate` has its name and its default, but for `gen_length`, which is
    `max_new_tokens` as in transformers. `docs/huggingface.md` lists what each of transformers'
    options means. An option that would be ignored is refused: when the configuration is made,
    when a changed one is saved, and when `generate` uses it. One read from a file is not checked
    before it is used, so that any checkpoint loads; keys of the file that are no options here, see
    `of_file`, are left aside, and written again when it is saved.

    Raises:
        ValueError: an unknown option, with the close match; one that breaks its rule; or one that
            cannot work with masked diffusion.
    """

    def __init__(self, **options: Any) -> None:
        check({k: v for k, v in options.items() if not internal(k)})
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        """The default of an option that was not stated: stated ones are attributes."""
        if name in own():
            return own()[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Check a configuration that was changed since it was read.

        Args:
            strict: whether to check at all: transformers asks for it before saving.
            user_set_attributes: part of transformers' signature; all is checked or nothing.

        Raises:
            ValueError: as when one is made.
        """
        read = self.__dict__.get("_original_object_hash")
        if strict and (read is None or read != hash(self)):
            check(stated(self))

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Set options that exist, and hand back the others.

        With `defaults_only` just what is not stated. Whether to sample always counts as stated:
        pipelines would else turn sampling on for every model.
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
        """What is stated, and whether that samples."""
        output: dict[str, Any] = super().to_dict()
        output.pop("_aside", None)
        output["do_sample"] = samples(output)
        return to_file(output, left_aside(self))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration with the values of a file, as they are: `generate` checks them.

        Args:
            config_dict: read from a file; see `of_file` for what counts of it.
            **kwargs: options that go before those of the file, and transformers' own flags.

        Returns:
            The configuration; with `return_unused_kwargs` also what it has no use for.

        Raises:
            ValueError: an unknown option among `kwargs`, unless they are handed back.
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
        """The special tokens that `config.json` names: it holds no other option of generation."""
        facts = model_config if isinstance(model_config, Mapping) else model_config.to_dict()
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        config: Self = cls.from_dict({n: facts[n] for n in names if facts.get(n) is not None})
        return config

    @classmethod
    def of(cls, config: GenerationConfig) -> Self:
        """Any configuration of transformers as one of ours, with all that it states."""
        made = cls()
        made.__dict__.update(stated(config), _aside=left_aside(config))
        made.__dict__["_original_object_hash"] = hash(made)
        return made


def left_aside(config: GenerationConfig) -> dict[str, Any]:
    """What stood in the file of a configuration and is no option here."""
    return dict(vars(config).get("_aside", {}))


def internal(name: str) -> bool:
    """Whether transformers keeps this beside the options."""
    return name.startswith("_") or name == "transformers_version"


def check(options: Mapping[str, Any]) -> None:
    """Check options that are to be kept in a file.

    Raises:
        ValueError: as `settings`, and a value that JSON cannot hold.
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
