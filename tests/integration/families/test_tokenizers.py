"""Tokenizers that come as vocab.json and merges.txt, or number their tokens anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import AutoTokenizer, PreTrainedConfig, pipeline

import dlm
from dlm.models.loading import silence
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


DREAM = {90: "<|endoftext|>", 91: "<|mask|>", 94: "<|im_end|>"}


@pytest.fixture
def dream(written: Callable[[str], Path], tmp_path: Path) -> Path:
    """A small Dream with a tokenizer of its own, code beside it and a hole before its last id."""
    folder = tmp_path / "model"
    shutil.copytree(written("dream"), folder)
    write(folder, "DreamTokenizer", DREAM)
    words = {letter: number for letter, number in WORDS.items() if number < 90}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "bait.py").write_text("raise RuntimeError('foreign code runs')\n")
    return folder


def test_a_dream_with_its_tokenizer(dream: Path) -> None:
    model = dlm.load(dream)
    assert (model.spec.mask_id, model.spec.stop_ids) == (91, (90, 94))
    assert (model.spec.unused, model.spec.never) == ((95, 96), (92, 93))
    assert dlm.generate(model, "!#", gen_length=4, stop_at_eos=False).tokens[0]


@pytest.mark.parametrize("trust", [None, False, True])
def test_transformers_reads_the_tokenizer_of_dream(
    dream: Path, tmp_path: Path, trust: bool | None
) -> None:
    """Without a question, and with what a caller asks for."""
    tokenizer: Any = AutoTokenizer.from_pretrained(
        dream, trust_remote_code=trust, padding_side="left"
    )
    assert {n: tokenizer.convert_tokens_to_ids(t) for n, t in DREAM.items()} == {
        n: n for n in DREAM
    }
    assert tokenizer(["!", "!#"], padding=True)["input_ids"] == [[90, 0], [0, 2]]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "bait" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == tokenizer.get_vocab()
    os.rename(dream, tmp_path / "outer")
    tokenizer = AutoTokenizer.from_pretrained(
        tmp_path, subfolder="outer", config=PreTrainedConfig()
    )
    assert tokenizer.mask_token_id == 91


@pytest.mark.parametrize("trust", [None, True])
def test_a_pipeline_of_dream(dream: Path, trust: bool | None) -> None:
    with silence():
        pipe: Any = pipeline("text-generation", model=str(dream), trust_remote_code=trust)
    options: dict[str, Any] = {"max_new_tokens": 4, "return_full_text": False}
    told = pipe("!#", stop_at_eos=False, **options)[0]["generated_text"]
    model = dlm.load(dream)
    out = dlm.generate(model, "!#", gen_length=4, stop_at_eos=False)
    assert told == pipe.tokenizer.decode(out.tokens[0], skip_special_tokens=True)


def test_a_pipeline_takes_the_tokenizer_of_load(dream: Path) -> None:
    """As docs/huggingface.md advises where transformers numbers the tokens of a Qwen2 anew."""
    path = dream / "tokenizer_config.json"
    files = json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    path.write_text(json.dumps(files))
    model = dlm.load(dream)
    assert AutoTokenizer.from_pretrained(dream).convert_tokens_to_ids("<|im_end|>") == 92
    with silence():
        tokenizer: Any = model.tokenizer
        pipe: Any = pipeline("text-generation", model=str(dream), tokenizer=tokenizer)
    assert pipe.tokenizer("<|im_end|>")["input_ids"] == [94]
    assert pipe("!#", max_new_tokens=4)


def test_a_dream_whose_tokenizer_is_whole(dream: Path) -> None:
    """Its tokenizer.json is taken as it is: not split as Qwen2 does, and nothing is added."""
    whole = Tokenizer(WordLevel({"a": 0, "b": 1, "<|mask|>": 2, "<|im_end|>": 3}, "a"))
    whole.pre_tokenizer = Whitespace()
    whole.save(str(dream / "tokenizer.json"))
    files = {"mask_token": "<|mask|>", "eos_token": "<|im_end|>"}
    files |= {"tokenizer_class": "DreamTokenizer"}
    more = {"auto_map": {"AutoTokenizer": ["bait.Tokenizer", None]}}
    (dream / "tokenizer_config.json").write_text(json.dumps(files | more))
    model = dlm.load(dream, mask_id=2)
    for tokenizer in (model.tokenizer, AutoTokenizer.from_pretrained(dream)):
        found: Any = tokenizer
        assert found("a b<|mask|>")["input_ids"] == [0, 1, 2]
        assert len(found) == 4
        assert found.eos_token_id == 3


def test_a_dream_without_its_words_is_refused(dream: Path) -> None:
    (dream / "vocab.json").unlink()
    with pytest.raises(
        ValueError, match=r"no tokenizer\.json, and not both vocab\.json and merges"
    ):
        dlm.load(dream)


@pytest.mark.parametrize("kind", ["DreamTokenizer", "Qwen2Tokenizer"])
def test_added_tokens_of_an_older_layout(tmp_path: Path, kind: str) -> None:
    """Ids in added_tokens.json, the tokens' parts in special_tokens_map.json."""
    write(tmp_path, kind, added_tokens_decoder={})
    files = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for name in ("added_tokens_decoder", "mask_token", "chat_template"):
        del files[name]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(files))
    added = {token: number for number, token in ADDED.items()}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "<|mask|>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    tokenizer: Any = read_tokenizer(str(tmp_path))
    assert {n: tokenizer.convert_tokens_to_ids(t) for n, t in ADDED.items()} == {
        n: n for n in ADDED
    }
    assert tokenizer.mask_token_id == 270
    assert tokenizer("the<|mask|>")["input_ids"] == [257, 270]
    assert tokenizer.chat_template.endswith("!")


def test_declared_tokens_go_before_those_of_an_older_layout(tmp_path: Path) -> None:
    """SDAR has its mask under two names, of which its tokenizer_config.json has the right one."""
    write(tmp_path, "Qwen2Tokenizer")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<MASK>": 270}))
    tokenizer: Any = read_tokenizer(str(tmp_path))
    assert tokenizer.convert_ids_to_tokens(270) == "<|mask|>"
    assert "<MASK>" not in tokenizer.get_vocab()


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
