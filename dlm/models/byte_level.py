"""Byte-level BPE tokenizers from vocab.json and merges.txt, with Qwen2's pre-tokenization.

Added tokens keep the ids that their files declare, including gaps. transformers would number them
consecutively from the end of the vocabulary. A tokenizer.json is used as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers


class Qwen2Tokenizer(transformers.Qwen2Tokenizer):
    """Qwen2's tokenizer; `save_pretrained` writes it as transformers' own class."""

    @classmethod
    def convert_to_native_format(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The arguments of the class: `vocab` and `merges`, read from the files that were found.

        Raises:
            ValueError: there is no tokenizer.json, and not both of the other files.
        """
        options.pop("auto_map", None)  # remote code, which is neither run nor mentioned when saved
        if options.get("tokenizer_file") is not None:
            # By default the class would add an <|endoftext|> that the file does not have.
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
    """Replaces the tokenizer class that Dream's checkpoints bring as remote code."""


class DreamTokenizerConfig(transformers.PreTrainedConfig):
    """The configuration class under which `DreamTokenizer` is registered.

    It is not registered under Dream's own configuration: if that had a tokenizer, transformers
    would prefer the remote code beside the checkpoint.
    """

    model_type = "dream-tokenizer"


def read_words(path: str, added: Mapping[int, Any]) -> dict[str, int]:
    """Ids of all tokens in a vocab.json, and of the added tokens."""
    words: dict[str, int] = json.loads(Path(path).read_text(encoding="utf-8"))
    return words | {token.content: number for number, token in added.items()}


def read_rules(path: str) -> list[tuple[str, ...]]:
    """The merges in a merges.txt, in order of priority."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
