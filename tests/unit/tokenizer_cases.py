"""The built-in model with tokenizers that decode in other ways, for tests of texts."""

from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dlm
from dlm.models.model import Model

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
STOP_ID, SPECIAL_ID = 0, 1
HEAD = {"</s>": STOP_ID, "<s>": SPECIAL_ID, "<unk>": 2}


def byte_level() -> Tokenizer:
    """One token a byte, and one for each half of a character of four bytes."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    smile = split.pre_tokenize_str("\U0001f600")[0][0]
    letters = [*LETTERS, smile[:2], smile[2:]]
    words = HEAD | {letter: 3 + i for i, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    core.pre_tokenizer = split
    core.decoder = decoders.ByteLevel()
    return core


def word_piece() -> Tokenizer:
    """Pieces of words, whose decoder puts spaces between and takes some away again."""
    words = ["the", "cat", "##s", "##ed", ".", ",", "'", "s", "n't", "ab", "##a", "b", "##b"]
    core = Tokenizer(models.WordPiece(HEAD | {w: 3 + i for i, w in enumerate(words)}))
    core.decoder = decoders.WordPiece()
    return core


def byte_fallback() -> Tokenizer:
    """Pieces with a sign for spaces, the first of which goes, and bytes for all else."""
    words = ["\u2581", "\u2581a", "a", "b", "ab", "\u2581b"]
    bytes_ = [f"<0x{number:02X}>" for number in (0x61, 0x20, 0xE2, 0x82, 0xAC, 0xC3, 0xA9)]
    vocabulary = HEAD | {word: 3 + i for i, word in enumerate(words + bytes_)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return core


def served(core: Tokenizer) -> Model:
    """The built-in model with another tokenizer, whose ids 0 and 1 are special."""
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    tiny = dlm.load()
    spec = replace(tiny.spec, vocab_size=len(tokenizer), stop_ids=(STOP_ID,), eos_id=STOP_ID)
    return replace(tiny, tokenizer=tokenizer, spec=spec)


MODELS = {
    "built-in": dlm.load(),
    "byte level": served(byte_level()),
    "word piece": served(word_piece()),
    "byte fallback": served(byte_fallback()),
}
