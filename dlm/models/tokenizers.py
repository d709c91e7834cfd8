"""Loading the tokenizers of checkpoints, without remote code."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm.models.files import cached, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer_config.json")
QWEN2 = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def read_tokenizer(
    source: str, default: str | None = None, **where: Any
) -> "PreTrainedTokenizerBase | None":
    """Read the tokenizer of a checkpoint; None if there is none.

    Args:
        source: a folder or a Hugging Face id.
        default: Hugging Face id of the tokenizer to use if the checkpoint has none; not used for a
            folder.
        where: as `dlm.models.files.cached` takes it.

    Raises:
        ValueError: the tokenizer is corrupt, or its ids differ from those that its files declare.
    """
    from transformers import AutoTokenizer

    try:
        if all(cached(source, name, **where) is None for name in FILES):
            if default is None or Path(source).is_dir():
                return None
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(default)
            return tokenizer
        declared = read_json(source, "tokenizer_config.json", **where) or {}
        kind: Any = AutoTokenizer
        split = cached(source, "tokenizer.json", **where) is None
        if split and declared.get("tokenizer_class") in QWEN2:
            from dlm.models.byte_level import Qwen2Tokenizer as kind
        tokenizer = kind.from_pretrained(source, trust_remote_code=False, **where)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the tokenizer of {source!r}: {error}") from error
    check_ids(source, tokenizer, declared)
    return tokenizer


def check_ids(source: str, tokenizer: Any, declared: dict[str, Any]) -> None:
    """Reject a tokenizer whose added tokens were given other ids.

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
