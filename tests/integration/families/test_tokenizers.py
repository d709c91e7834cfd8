"""Tokenizers that come as vocab.json and merges.txt, or number their tokens anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel

import dlm
from dlm.models.tokenizers import read_tokenizer

LETTERS = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
WORDS = LETTERS | {"th": 256, "the": 257}
MERGES = "#version: 0.2\nt h\nth e\n"
ADDED = {258: "<|endoftext|>", 260: "<|im_end|>", 270: "<|mask|>"}


def write(folder: Path, kind: str, added: dict[int, str] = ADDED, **more: Any) -> Path:
    """A byte-level tokenizer with holes between its added tokens, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(WORDS), encoding="utf-8")
    (folder / "merges.txt").write_text(MERGES, encoding="utf-8")
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    files = {
        "tokenizer_class": kind,
        "auto_map": {"AutoTokenizer": ["bait.Tokenizer", None]},
        "added_tokens_decoder": {
            str(number): {"content": token, "special": True, **flags}
            for number, token in added.items()
        },
        "eos_token": "<|endoftext|>",
        "pad_token": {"content": "<|endoftext|>", "__type": "AddedToken", **flags},
        "mask_token": "<|mask|>",
        "model_max_length": 77,
        "chat_template": "{{ messages[0]['content'] }}",
        **more,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(files), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"])
def test_added_tokens_keep_their_ids(tmp_path: Path, kind: str) -> None:
    tokenizer = read_tokenizer(str(write(tmp_path, kind)))
    assert tokenizer is not None
    assert {number: tokenizer.convert_tokens_to_ids(t) for number, t in ADDED.items()} == {
        number: number for number in ADDED
    }
    assert tokenizer.mask_token_id == 270
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 258
    assert tokenizer.model_max_length == 77
    assert tokenizer.chat_template is not None
    ids = tokenizer("the th<|mask|>\u00e9the<|im_end|>")["input_ids"]
    space, first, second = (LETTERS[letter] for letter in ("\u0120", "\u00c3", "\u00a9"))
    assert ids == [257, space, 256, 270, first, second, 257, 260]
    assert tokenizer.decode(ids) == "the th<|mask|>\u00e9the<|im_end|>"


def test_letters_and_accents_that_are_two_signs_become_one(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(str(write(tmp_path, "DreamTokenizer")))
    assert tokenizer is not None
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]


def test_a_dream_with_its_tokenizer(written: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(written("dream"), folder)
    write(folder, "DreamTokenizer", {90: "<|endoftext|>", 91: "<|mask|>", 92: "<|im_end|>"})
    words = {letter: number for letter, number in WORDS.items() if number < 90}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    model = dlm.load(folder)
    assert (model.spec.mask_id, model.spec.stop_ids) == (91, (90, 92))
    assert model.spec.unused == (93, 96)
    assert dlm.generate(model, "!#", gen_length=4, stop_at_eos=False).tokens[0]


def test_a_tokenizer_that_numbers_anew_is_refused(tmp_path: Path) -> None:
    good = read_tokenizer(str(write(tmp_path / "good", "Qwen2Tokenizer")))
    assert good is not None
    good.save_pretrained(tmp_path / "whole")
    path = tmp_path / "whole" / "tokenizer_config.json"
    files = json.loads(path.read_text())
    files["added_tokens_decoder"] = {"269": {"content": "<|mask|>"}}
    path.write_text(json.dumps(files))
    with pytest.raises(ValueError, match=r"gives '<\|mask\|>' the id 270, and its .* declares 269"):
        read_tokenizer(str(tmp_path / "whole"))


def test_a_tokenizer_survives_saving(tmp_path: Path) -> None:
    before = read_tokenizer(str(write(tmp_path / "before", "DreamTokenizer")))
    assert before is not None
    before.save_pretrained(tmp_path / "after")
    after = read_tokenizer(str(tmp_path / "after"))
    assert after is not None
    assert after.get_vocab() == before.get_vocab()
    text = "the <|mask|> th\u00e9"
    assert after(text)["input_ids"] == before(text)["input_ids"]


@pytest.mark.parametrize("content", ["[]", "{", '{"added_tokens_decoder": {"x": {}}}'])
def test_a_corrupt_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path, "Qwen2Tokenizer")
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        read_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert read_tokenizer(str(tmp_path)) is None
    assert read_tokenizer(str(tmp_path), "gpt2") is None
