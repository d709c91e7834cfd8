"""Tokenizers of byte-level BPE that come as vocab.json and merges.txt, split as Qwen2 does.

Added tokens keep the ids that their files declare, gaps included: transformers counts on from the
vocabulary's end instead. A tokenizer.json is taken as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers


class Qwen2Tokenizer(transformers.Qwen2Tokenizer):
    """That of Qwen2; saved, it is transformers' own."""

    @classmethod
    def convert_to_native_format(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """What the class is built from: `vocab` and `merges`, out of files that transformers found.

        Raises:
            ValueError: there is neither a tokenizer.json nor both others.
        """
        options.pop("auto_map", None)  # code that is not run, and not told of when it is saved
        if options.get("tokenizer_file") is not None:
            # By default the class would add an <|endoftext|> that is not there.
            options = dict.fromkeys(("unk_token", "eos_token", "pad_token")) | options
        else:
            words, rules = options.get("vocab_file"), options.get("merges_file")
            if words is None or rules is None:
                raise ValueError(
                    "there is no tokenizer.json, and not both vocab.json and merges.txt"
                )
            options["vocab"] = read_words(words, options["added_tokens_decoder"])
            options["merges"] = read_rules(rules)
        native: Any = super().convert_to_native_format(*args, **options)  # type: ignore[no-untyped-call]
        return dict(native)


class DreamTokenizer(Qwen2Tokenizer):
    """Stands in for the class that lies beside Dream's checkpoints."""


class DreamTokenizerConfig(transformers.PreTrainedConfig):
    """The configuration that `DreamTokenizer` is registered under.

    Not by the configuration of Dream: where that has a tokenizer, transformers prefers the one
    whose code lies beside a checkpoint.
    """

    model_type = "dream-tokenizer"


def read_words(path: str, added: Mapping[int, Any]) -> dict[str, int]:
    """Ids of all tokens of a vocab.json, and of those that are added to them."""
    words: dict[str, int] = json.loads(Path(path).read_text(encoding="utf-8"))
    return words | {token.content: number for number, token in added.items()}


def read_rules(path: str) -> list[tuple[str, ...]]:
    """Pairs that a merges.txt joins, first those that come first."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
