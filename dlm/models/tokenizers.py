"""Tokenizers of checkpoints, without the code that may lie beside them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer_config.json")
BYTE_LEVEL = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Classes of byte-level BPE, split as Qwen2 does, that come as vocab.json and merges.txt."""

KEPT = (
    "additional_special_tokens",
    "bos_token",
    "chat_template",
    "eos_token",
    "mask_token",
    "model_max_length",
    "pad_token",
    "unk_token",
)


def read_tokenizer(source: str, default: str | None = None) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a checkpoint, or None where there is none.

    Args:
        source: a folder or a Hugging Face id.
        default: a Hugging Face id for one that has no tokenizer of its own; a folder is read alone.

    Raises:
        ValueError: it is corrupt, or its ids are not those that its files declare.
    """
    from transformers import AutoTokenizer

    try:
        if all(cached(source, name) is None for name in FILES):
            if default is None or Path(source).is_dir():
                return None
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(default)
            return tokenizer
        declared = read_json(source, "tokenizer_config.json")
        tokenizer = byte_level(source, declared) or AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the tokenizer of {source!r}: {error}") from error
    check_ids(source, tokenizer, declared)
    return tokenizer


def cached(source: str, name: str) -> str | None:
    """Where a file of the checkpoint is, None where it has none."""
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def read_json(source: str, name: str) -> dict[str, Any]:
    """A file of the checkpoint, empty where it has none."""
    path = cached(source, name)
    stated = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(stated, dict):
        raise ValueError(f"{name} must hold an object, got {stated!r}")
    return stated


def byte_level(source: str, declared: dict[str, Any]) -> "PreTrainedTokenizerBase | None":
    """A tokenizer of `BYTE_LEVEL` that comes without `tokenizer.json`; None for any other.

    Added tokens keep the ids their files declare, gaps included: transformers counts on from the
    vocabulary's end instead, and needs the code beside the checkpoint for Dream's.
    """
    from transformers import AddedToken, Qwen2Tokenizer

    files = [cached(source, name) for name in ("tokenizer.json", "vocab.json", "merges.txt")]
    whole, words, rules = files
    if declared.get("tokenizer_class") not in BYTE_LEVEL or whole or not words or not rules:
        return None
    added = {
        int(number): AddedToken(**{k: v for k, v in token.items() if k != "__type"})
        for number, token in declared.get("added_tokens_decoder", {}).items()
    }
    vocabulary = json.loads(Path(words).read_text(encoding="utf-8"))
    vocabulary |= {token.content: number for number, token in added.items()}
    lines = Path(rules).read_text(encoding="utf-8").splitlines()
    merges: Any = [
        tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
    ]
    kept = {key: plain(declared[key]) for key in KEPT if declared.get(key) is not None}
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, added_tokens_decoder=added, **kept
    )
    return tokenizer


def plain(value: Any) -> Any:
    """A special token as text, which files may write with its properties."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def check_ids(source: str, tokenizer: Any, declared: dict[str, Any]) -> None:
    """Refuse a tokenizer that numbers its added tokens anew.

    Raises:
        ValueError: a token has another id than `tokenizer_config.json` declares.
    """
    vocabulary = tokenizer.get_vocab()
    for number, token in declared.get("added_tokens_decoder", {}).items():
        found = vocabulary.get(token["content"])
        if found != int(number):
            raise ValueError(
                f"the tokenizer of {source!r} gives {token['content']!r} the id {found}, and its "
                f"tokenizer_config.json declares {number}"
            )
