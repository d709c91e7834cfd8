"""Text of a stream: together it is the text of the whole, however the tokens came."""

import runpy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm import reading
from dlm.models.model import Model
from dlm.prompts import decode_text, whole_text
from dlm.reading import AtStopToken, Reader, vocabulary_of

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "tokenizer_cases.py")))
MODELS, STOP_ID, SPECIAL_ID = CASES.MODELS, CASES.STOP_ID, CASES.SPECIAL_ID


def read(
    model: Model,
    tokens: Sequence[int],
    cuts: Sequence[int],
    stop: Sequence[str],
    does: AtStopToken = "end",
) -> Any:
    """The reader of tokens that come in pieces, and the texts it gave."""
    reader = Reader(model, stop, at_stop_token=does)
    ends = sorted({0, *(min(cut, len(tokens)) for cut in cuts)})
    texts = [reader.push(tokens[begin:end]) for begin, end in pairwise(ends)]
    return reader, [*texts, reader.end(tokens)]


def cut(text: str, stop: Sequence[str]) -> str:
    """A text in front of the first stop text."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=None)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Model, list[int], list[int], list[str]]:
    """A model, tokens, where they are cut into pieces, and stop texts that may well occur."""
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    ids = st.integers(0, model.spec.vocab_size - 1)
    stops = st.sampled_from(model.spec.stop_ids)
    few = draw(st.lists(ids, min_size=1, max_size=4))
    one = st.sampled_from(few) | st.sampled_from(few) | ids
    tokens = draw(st.lists(one if draw(st.booleans()) else one | stops, max_size=32))
    some = st.lists(st.integers(0, len(tokens)), max_size=24)
    cuts = draw(st.just([*range(len(tokens) + 1)]) | some)
    text = decode_text(model, tokens)
    part = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 5)).map(
        lambda place: text[place[0] : sum(place)]
    )
    made = part | st.tuples(part, st.sampled_from("ab\ufffd")).map("".join)
    return model, tokens, cuts, draw(st.lists(made.filter(bool), max_size=3))


@given(
    case=cases(),
    kept=st.sampled_from([1, 2, 3, 8]),
    long=st.sampled_from([4, 32]),
    does=st.sampled_from(get_args(AtStopToken)),
)
@settings(deadline=None, max_examples=150)
def test_pieces_make_the_text_of_the_whole(
    case: tuple[Model, list[int], list[int], list[str]], kept: int, long: int, does: AtStopToken
) -> None:
    model, tokens, cuts, stop = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "KEPT", kept)
        patch.setattr(reading, "LONG", long)
        reader, texts = read(model, tokens, cuts, stop, does)
    whole = (whole_text if does == "ignore" else decode_text)(model, tokens)
    assert "".join(texts) == cut(whole, stop)
    assert reader.stopped == any(text in whole for text in stop)
    assert does == "end" or not reader.ended


@given(text=st.text(max_size=20))
@settings(deadline=None)
def test_any_text_comes_token_by_token(text: str) -> None:
    model = MODELS["built-in"]
    assert model.tokenizer is not None
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    _, texts = read(model, tokens, range(len(tokens) + 1), [])
    assert "".join(texts) == decode_text(model, tokens)


def tokens_of(model: Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_text_comes_as_soon_as_it_is_final() -> None:
    model = MODELS["byte level"]
    reader = Reader(model)
    assert [reader.push([token]) for token in tokens_of(model, "a\u00e9\u20acb")] == [
        "a", "", "\u00e9", "", "", "\u20ac", "b",
    ]  # fmt: skip


def test_what_may_become_a_stop_text_is_withheld() -> None:
    model = MODELS["byte level"]
    reader = Reader(model, ["END", "\n\n"])
    tokens = tokens_of(model, "1E2\n3ENENDx")
    assert [reader.push([token]) for token in tokens[:-1]] == [
        "1", "", "E2", "", "\n3", "", "", "EN", "", "",
    ]  # fmt: skip
    assert reader.stopped
    assert reader.count == len(tokens) - 1
    assert (reader.push(tokens[-1:]), reader.end(tokens)) == ("", "")


@given(cases())
@settings(deadline=None, max_examples=150)
def test_nothing_counts_behind_a_stop_text(
    case: tuple[Model, list[int], list[int], list[str]],
) -> None:
    """However much of the row was decoded when it was seen."""
    model, tokens, cuts, stop = case
    reader, _ = read(model, tokens, cuts, stop)
    if not reader.stopped:
        return
    found, short = (whole_text(model, tokens[:n]) for n in (reader.count, reader.count - 1))
    assert any(found.startswith(each, len(reader.given)) for each in stop)
    assert not any(short.startswith(each, len(reader.given)) for each in stop)
    whole, _ = read(model, tokens, [], stop)
    assert whole.count == reader.count


def test_the_stop_text_that_begins_first_counts() -> None:
    model = MODELS["byte level"]
    for text, shown in [("xabc", "x"), ("xabd", "xa")]:
        reader = Reader(model, ["b", "abc"])
        assert "".join(reader.push([token]) for token in tokens_of(model, text)) == shown
        assert reader.stopped


def test_a_stop_text_that_is_whole_withholds_nothing_in_front_of_it() -> None:
    model = MODELS["byte level"]
    reader = Reader(model, ["ab", "vwxyz123"])
    assert reader.push(tokens_of(model, "cdefgab")) == "cdefg"
    assert reader.stopped


def test_an_end_of_text_gives_what_was_withheld() -> None:
    model = MODELS["byte level"]
    tokens = [*tokens_of(model, "aEN")]
    reader = Reader(model, ["END"])
    assert reader.push(tokens) == "a"
    assert reader.end(tokens) == "EN"
    assert not reader.stopped


def test_half_a_character_at_the_end_is_shown_as_decoding_shows_it() -> None:
    model = MODELS["byte level"]
    tokens = tokens_of(model, "a\u20ac")[:-1]
    reader = Reader(model)
    assert reader.push(tokens) == "a"
    assert reader.end(tokens) == "\ufffd"


def test_bytes_wait_for_the_end_of_their_run() -> None:
    model = MODELS["byte fallback"]
    assert model.tokenizer is not None
    names = ["ab", "<0x61>", "<s>", "<0xE2>", "a"]
    ids = model.tokenizer.get_vocab()
    tokens = [ids[name] for name in names]
    reader = Reader(model)
    texts = [reader.push([token]) for token in tokens]
    assert texts == ["ab", "", "", "", "\ufffd\ufffda"]  # no text, so not even the first is
    assert "".join(texts) == decode_text(model, tokens)


@pytest.mark.parametrize("pushed", [True, False])
def test_nothing_counts_behind_a_stop_token(pushed: bool) -> None:
    model = MODELS["byte level"]
    tokens = [*tokens_of(model, "ab"), STOP_ID, *tokens_of(model, "cd")]
    reader = Reader(model)
    texts = [reader.push(tokens[:3]), reader.push(tokens[3:])] if pushed else []
    assert "".join([*texts, reader.end(tokens)]) == "ab"
    assert (reader.count, reader.ended, reader.stopped) == (3, True, False)


@pytest.mark.parametrize("pushed", [True, False])
@pytest.mark.parametrize(("does", "text"), [("cut", "ab"), ("ignore", "abcd")])
def test_all_tokens_count_where_a_stop_token_ends_no_choice(
    does: AtStopToken, text: str, pushed: bool
) -> None:
    model = MODELS["byte level"]
    tokens = [*tokens_of(model, "ab"), STOP_ID, *tokens_of(model, "cd")]
    reader = Reader(model, at_stop_token=does)
    texts = [reader.push(tokens[:3]), reader.push(tokens[3:])] if pushed else []
    assert not pushed or reader.count == 5
    assert "".join([*texts, reader.end(tokens)]) == text
    assert (reader.count, reader.ended) == (5, False)


def test_without_a_stop_token_all_tokens_count() -> None:
    model = MODELS["byte level"]
    reader = Reader(model)
    assert reader.end(tokens_of(model, "abc")) == "abc"
    assert (reader.count, reader.ended) == (3, False)


def decoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call decodes from now on."""
    seen: list[int] = []
    tokenizer: Any = model.tokenizer
    decode = tokenizer.decode

    def watched(ids: list[int], **options: Any) -> str:
        seen.append(len(ids))
        return str(decode(ids, **options))

    monkeypatch.setattr(tokenizer, "decode", watched)
    return seen


def test_a_long_text_is_not_decoded_from_its_beginning_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["byte level"]
    seen = decoded(model, monkeypatch)
    reader = Reader(model)
    for token in tokens_of(model, "abc\u20ac" * 50):
        reader.push([token])
    assert max(seen) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("word piece", ["cat", "##s", "."]), ("byte fallback", ["\u2581a", "b", "<0x61>", "ab"])],
)
def test_a_few_tokens_are_decoded_again_where_text_hangs_on_what_stands_before(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]
    tokenizer: Any = model.tokenizer
    tokens = tokenizer.convert_tokens_to_ids(words * 200)
    whole = decode_text(model, tokens)
    seen = decoded(model, monkeypatch)
    reader = Reader(model)
    texts = [reader.push([token]) for token in tokens]
    assert "".join(texts) == whole
    assert texts.count("") <= len(tokens) // len(words) + 1  # a byte waits for the next
    assert max(seen) <= 2 * reading.KEPT + len(words)
    assert len(seen) < 1.5 * len(tokens)


def test_a_text_that_cannot_be_cut_is_decoded_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["word piece"]  # a piece of a word that begins a text shows its sign
    tokenizer: Any = model.tokenizer
    tokens = tokenizer.convert_tokens_to_ids(["cat", *["##s"] * 999])
    whole = decode_text(model, tokens)
    seen = decoded(model, monkeypatch)
    reader = Reader(model)
    texts = [reader.push([token]) for token in tokens]
    assert sum(seen) < 20 * len(tokens)
    assert "".join([*texts, reader.end(tokens)]) == whole
    assert len("".join(texts)) > 0.8 * len(whole)


def test_all_is_decoded_where_the_window_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["word piece"]
    monkeypatch.setattr(reading, "KEPT", 1)

    said = {(3,): "a", (3, 4): "ab", (4,): "b", (4, 5): "d", (3, 4, 5): "abc"}
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids, **options: said[tuple(ids)])
    reader = Reader(model)
    assert [reader.push([token]) for token in (3, 4)] == ["a", "b"]
    assert (reader.begin, reader.head, reader.known) == (1, "b", "ab")
    assert reader.push([5]) == "c"
    assert (reader.begin, reader.head, reader.known) == (0, "", "")


@pytest.mark.parametrize("head", ["x", ""])
def test_the_window_stays_where_it_would_read_otherwise(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    model = MODELS["word piece"]
    monkeypatch.setattr(reading, "KEPT", 1)
    said = {(3,): "a", (3, 4): "ab", (4,): head, (3, 4, 5): "abc", (5,): "c"}
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids, **options: said[tuple(ids)])
    reader = Reader(model)
    assert [reader.push([token]) for token in (3, 4)] == ["a", "b"]
    assert (reader.begin, reader.head, reader.known) == (0, "", "")
    assert reader.push([5]) == "c"
    assert (reader.begin, reader.head, reader.known) == (2, "c", "abc")


def test_nothing_is_decoded_where_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["byte fallback"]
    seen = decoded(model, monkeypatch)
    reader = Reader(model)
    assert [reader.push([SPECIAL_ID]) for _ in range(4)] == [""] * 4
    assert seen == []


def test_the_vocabulary_is_read_once() -> None:
    tokenizer: Any = MODELS["byte fallback"].tokenizer
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary_of(tokenizer) is vocabulary
    assert not vocabulary.local
    assert vocabulary.longest == len("<0xE2>")
    read = {"\u2581", "\u2581a", "a", "b", "ab", "\u2581b"}
    assert set(tokenizer.convert_ids_to_tokens(sorted(vocabulary.readable))) == read
    assert vocabulary_of(MODELS["byte level"].tokenizer).local


def test_nothing_is_given_while_a_tokenizer_takes_its_text_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["word piece"]
    said = {0: "", 1: "a.", 2: "a .b", 3: "a.bc"}
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids, **options: said[len(ids)])
    reader = Reader(model)
    assert [reader.push([3]) for _ in range(3)] == ["a.", "", "bc"]
    assert reader.end([3, 3, 3]) == ""


def test_a_model_without_a_tokenizer_has_no_text() -> None:
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        Reader(replace(MODELS["byte level"], tokenizer=None))
