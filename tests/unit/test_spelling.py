"""How tokens read one by one: together they are the text, each at its place."""

import runpy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from dlm.models.model import Model
from dlm.prompts import whole_text
from dlm.spelling import Spelled, Speller, letters

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "tokenizer_cases.py")))
MODELS = CASES.MODELS


def spell(model: Model, tokens: Sequence[int], cuts: Sequence[int] = ()) -> list[Spelled]:
    """Tokens that come in pieces, spelled."""
    speller = Speller(model)
    ends = sorted({0, *(min(cut, len(tokens)) for cut in cuts), len(tokens)})
    found = [one for begin, end in pairwise(ends) for one in speller.push(tokens[begin:end])]
    return found + speller.end()


def ids(name: str, text: str) -> list[int]:
    tokenizer: Any = MODELS[name].tokenizer
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_tokens_make_the_text_of_the_whole(name: str, data: st.DataObject) -> None:
    model = MODELS[name]
    one = st.integers(0, model.spec.vocab_size - 1)
    if data.draw(st.booleans()):
        one = st.sampled_from(data.draw(st.lists(one, min_size=1, max_size=4))) | one
    tokens = data.draw(st.lists(one, max_size=24))
    cuts = data.draw(st.lists(st.integers(0, 24), max_size=6))
    found, text = spell(model, tokens, cuts), whole_text(model, tokens)
    assert found == spell(model, tokens)
    assert len(found) == len(tokens)
    joined = b"".join(each.spelled or b"" for each in found).decode(errors="replace")
    signs = name == "byte fallback" and "\ufffd" in text  # which stand for a byte each
    spaced = name == "byte fallback" and joined == f" {text}"  # the first of a text is left out
    assert signs or spaced or joined == text
    offsets = [each.offset for each in found]
    assert offsets == sorted(offsets)
    for each in found:
        assert 0 <= each.offset <= len(text)
        if not (signs or (spaced and each.offset == 0)) and each.name.encode() == each.spelled:
            assert text.startswith(each.name, each.offset)


@given(text=st.text(max_size=12))
@settings(deadline=None, max_examples=40)
def test_parts_of_characters_lie_where_their_character_does(text: str) -> None:
    found = spell(MODELS["byte level"], ids("byte level", text))
    assert b"".join(each.spelled or b"" for each in found) == text.encode()
    place = 0
    for each in found:
        assert each.offset == len(text.encode()[:place].decode(errors="ignore"))
        place += len(each.spelled or b"")


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    found = spell(MODELS["byte level"], ids("byte level", "a\u00e9"))
    assert found == [
        Spelled("a", b"a", 0), Spelled("\\xc3", b"\xc3", 1), Spelled("\\xa9", b"\xa9", 1),
    ]  # fmt: skip


def test_special_tokens_add_nothing() -> None:
    model = MODELS["byte level"]
    first, second, last = ids("byte level", "a\u00e9")
    found = spell(model, [first, CASES.SPECIAL_ID, second, CASES.SPECIAL_ID, last])
    assert [(each.name, each.spelled, each.offset) for each in found] == [
        ("a", b"a", 0), ("<s>", None, 1), ("\\xc3", b"\xc3", 1), ("<s>", None, 1),
        ("\\xa9", b"\xa9", 1),
    ]  # fmt: skip


def test_bytes_wait_for_the_end_of_their_run() -> None:
    model = MODELS["byte fallback"]
    tokenizer: Any = model.tokenizer
    speller = Speller(model)

    def push(*names: str) -> list[tuple[str, bytes | None, int]]:
        found = speller.push(tokenizer.convert_tokens_to_ids(list(names)))
        return [(each.name, each.spelled, each.offset) for each in found]

    assert push("ab", "<0xE2>", "<0x82>") == [("ab", b"ab", 0)]
    assert push("<0xAC>", "<s>") == []
    assert push("\u2581a") == [
        ("\\xe2", b"\xe2", 2), ("\\x82", b"\x82", 2), ("\\xac", b"\xac", 2), ("<s>", None, 3),
        (" a", b" a", 3),
    ]  # fmt: skip
    assert push("<0x61>", "<0xE2>") == []
    assert push("b") == [("a", b"a", 5), ("\\xe2", b"\xe2", 6), ("b", b"b", 7)]  # no text: 2 signs
    assert push("<0xC3>") == []
    assert [each.offset for each in speller.end()] == [8]


def test_a_space_that_a_text_does_without_takes_no_place() -> None:
    model = MODELS["byte fallback"]
    tokenizer: Any = model.tokenizer
    tokens = tokenizer.convert_tokens_to_ids(["<0x20>", "<0x61>", "b"])
    assert whole_text(model, tokens) == "ab"
    assert [(each.name, each.offset) for each in spell(model, tokens)] == [
        (" ", 0), ("a", 0), ("b", 1),
    ]  # fmt: skip


def test_letters_are_those_of_the_pre_tokenizer() -> None:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for letter, byte in letters().items():
        if byte < 0x80:
            assert split.pre_tokenize_str(chr(byte)) == [(letter, (0, 1))]
    assert sorted(letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(letters().values()) == [*range(0x100)]


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_what_might_have_stood_there_reads_as_if_it_did(name: str, data: st.DataObject) -> None:
    """A last token behind others, where all of them are whole characters."""
    model = MODELS[name]
    ids = st.integers(0, model.spec.vocab_size - 1)
    *before, last = data.draw(st.lists(ids, min_size=1, max_size=12))
    silent = data.draw(st.lists(st.sampled_from(sorted(Speller(model).vocabulary.silent))))
    tokens = [*before, *silent, last]
    before += silent
    expected = spell(model, tokens)[-1]
    (found,) = Speller(model).instead(before, [last])
    if "\ufffd" not in whole_text(model, tokens):
        assert (found.name, found.spelled) == (expected.name, expected.spelled)
    assert Speller(model).instead(before, []) == []
