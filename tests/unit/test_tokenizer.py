"""The built-in model's tokenizer."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import dlm
from dlm.data import TASKS, generate_examples
from dlm.data.tokenizer import ROLES, SPECIAL_TOKENS, build_tokenizer, corpus

SHIPPED = Path(dlm.__file__).parent / "assets" / "tiny"
TOKENIZER = build_tokenizer(corpus(0, per_task=200))


def encode(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


def chat(prompt: str, tokenizer: PreTrainedTokenizerFast, generate: bool = True) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
    assert isinstance(text, str)
    return encode(text, tokenizer)


def load(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@given(text=st.text(max_size=60))
@example(text="a  b .\n\n\tit 's n't 12,345 \u00e9 \U0001f600 \u0664 ")
@example(text="x <|eot_id|> y <|mdm_mask|>")
@settings(deadline=None)
def test_any_text_decodes_to_itself(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


@given(number=st.integers(0, 10**12), word=st.sampled_from(["", "x", " ", "a ", "-"]))
@settings(deadline=None)
def test_every_digit_is_a_token(number: int, word: str) -> None:
    tokens = TOKENIZER.convert_ids_to_tokens(encode(f"{word}{number}{word}"))
    digits = [token for token in tokens if any(map(str.isdigit, token))]
    assert digits == list(str(number))


def test_special_tokens_come_first() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert TOKENIZER.bos_token == "<|startoftext|>"
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == "<|endoftext|>"
    assert TOKENIZER.mask_token == "<|mdm_mask|>"
    for index, token in enumerate(SPECIAL_TOKENS):
        assert encode(token) == [index]


def test_plain_encoding_adds_nothing() -> None:
    assert TOKENIZER("12")["input_ids"] == encode("12")
    assert len(encode("12")) == 2


def test_chat_template_costs_eight_tokens() -> None:
    words = "Sudoku: 3102200002100320"
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": f" {words}\n"}], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        f"<|startoftext|><|start_header_id|>user<|end_header_id|>{words}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>"
    )
    assert len(chat(words, TOKENIZER)) == len(encode(words)) + 8
    assert len(chat(words, TOKENIZER, generate=False)) == len(encode(words)) + 5


def test_chat_template_holds_a_conversation() -> None:
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    turns = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>{role[0]}<|eot_id|>"
        for role in ("system", "user", "assistant")
    )
    assert text == "<|startoftext|>" + turns


@pytest.mark.parametrize("texts", [[], ["zz qq " * 400], ["1 2 3"]])
def test_roles_are_single_tokens_whatever_the_texts(texts: list[str]) -> None:
    tokenizer = build_tokenizer(texts, vocab_size=300)
    assert len(tokenizer) <= 300
    assert all(len(encode(role, tokenizer)) == 1 for role in ROLES)


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must leave room for .* got 264"):
        build_tokenizer(["some text"], vocab_size=264)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = build_tokenizer(iter(corpus(0, per_task=200)))
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
    assert len(again) <= 768


@pytest.mark.parametrize("config", [None, {"model_type": "llada"}])
def test_reload_is_the_same(tmp_path: Path, config: dict[str, str] | None) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    again = load(tmp_path)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert again.chat_template == TOKENIZER.chat_template
    assert again.special_tokens_map == TOKENIZER.special_tokens_map
    assert again.clean_up_tokenization_spaces is False
    for task in TASKS:
        for item in generate_examples(task, 1, count=20):
            assert chat(item.prompt, again) == chat(item.prompt, TOKENIZER)
            assert again.decode(encode(item.response, again)) == item.response


LONGEST = {
    "sudoku": (27, 43),
    "countdown": (24, 48),
    "word_problems": (48, 80),
    "functions": (48, 72),
    "arithmetic": (44, 84),
}


@pytest.mark.parametrize("task", list(TASKS))
def test_shipped_tokenizer_keeps_examples_short(task: str) -> None:
    tokenizer = load(SHIPPED)
    longest_prompt, longest = LONGEST[task]
    for item in generate_examples(task, 2, count=300):
        prompt = len(chat(item.prompt, tokenizer))
        assert prompt <= longest_prompt
        assert prompt + len(encode(item.response, tokenizer)) <= longest


def test_shipped_tokenizer_is_the_one_the_corpus_gives() -> None:
    shipped = load(SHIPPED)
    assert build_tokenizer(corpus(0)).get_vocab() == shipped.get_vocab()
    assert len(shipped) == 768
