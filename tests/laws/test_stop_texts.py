"""Texts that end a row: what comes in front of them stays, and nothing is decoded for the rest."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import dlm
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.models.model import Model

LETTERS = "abcde"
STOP = ["ab", "cc", "d"]
ROWS = [[1, 2, 3], [4, 0], [2], [0, 0, 1, 3]]
OPTIONS: dict[str, Any] = {"gen_length": 24, "block_length": 6, "temperature": 1.0}


def tokenizer() -> Any:
    """A letter a token; end of turn 5, end of text 6 and the mask 7 are special."""
    names = [*LETTERS, "<eot>", "<eos>", "<mask>"]
    core = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, []))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        mask_token="<mask>",
        additional_special_tokens=["<eot>"],
    )


@pytest.fixture(scope="module")
def writer(toy: Callable[..., Model]) -> Model:
    """A toy model that writes letters."""
    return replace(toy(3, 1.0), tokenizer=tokenizer())


def lettered(model: Model) -> Model:
    """A model whose tokens are a letter and a number each."""
    names = {chr(97 + place % 26) + str(place): place for place in range(model.spec.vocab_size)}
    core = Tokenizer(models.BPE(names, []))
    core.decoder = decoders.ByteLevel()
    return replace(model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=core))


def until(text: str, stop: Sequence[str]) -> str:
    ends = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(ends)] if ends else text


def check(model: Model, whole: dlm.Generation, found: dlm.Generation) -> None:
    """That a generation is one without stop texts, cut in front of the first."""
    assert whole.texts is not None
    assert found.texts == [until(text, STOP) for text in whole.texts]
    for row, text in enumerate(found.texts):
        assert found.forwards[row] <= whole.forwards[row]
        if text == whole.texts[row]:
            assert found.tokens[row] == whole.tokens[row]
            continue
        stop = next(stop for stop in STOP if whole.texts[row].startswith(stop, len(text)))
        kept = len(text) + len(stop)  # a letter is a token
        assert found.tokens[row][:kept] == whole.tokens[row][:kept]
        assert set(found.tokens[row][kept:]) <= {model.spec.eos_id}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", DECODERS)
def test_what_comes_in_front_stays(
    writer: Model, name: str, decoding: Callable[[str], dict[str, Any]]
) -> None:
    saved = cut = 0
    for seed in range(3):
        options = {**OPTIONS, **decoding(name), "seed": seed}
        whole = dlm.generate(writer, ROWS, **options)
        found = dlm.generate(writer, ROWS, stop=STOP, **options)
        check(writer, whole, found)
        assert found.texts is not None
        assert whole.texts is not None
        cut += sum(one != other for one, other in zip(found.texts, whole.texts, strict=True))
        saved += sum(whole.forwards) - sum(found.forwards)
        if found.path_log_probability is not None:
            for row, path in enumerate(found.path_log_probability):
                assert path is None or found.texts[row] == whole.texts[row]
    assert cut
    if not getattr(DECODERS[name], "cross_block", False):
        assert saved, "a row that is over goes on"


@pytest.mark.parametrize("name", ["low_confidence", "threshold", "mutual_stability"])
def test_what_is_cut_off_has_no_order(
    writer: Model, name: str, decoding: Callable[[str], dict[str, Any]]
) -> None:
    """But for end of text that a forward wrote there."""
    lost = 0
    for seed in range(3):
        options = {**OPTIONS, **decoding(name), "return_order": True, "seed": seed}
        whole = dlm.generate(writer, ROWS, **options)
        found = dlm.generate(writer, ROWS, stop=STOP, return_trajectory=True, **options)
        assert found.order is not None
        assert found.trajectory is not None
        assert whole.order is not None
        assert whole.texts is not None
        for row, text in enumerate(whole.texts):
            front = until(text, STOP)
            stop = next((stop for stop in STOP if text.startswith(stop, len(front))), "")
            kept = len(front) + len(stop)  # a letter is a token
            assert found.order[row][:kept] == whole.order[row][:kept]
            made = [*found.trajectory[row].commits, *found.trajectory[row].edits]
            written = {change.position: change.token for change in sorted(made)}
            for at, number in enumerate(found.order[row][kept:], kept):
                assert (number >= 0) == (written.get(at) == found.tokens[row][at])
                lost += bool(stop) and number < 0 and at in written
    assert lost, "nothing was cut off, or the test shows nothing"


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_that_wait_for_others_are_told_once(
    golden: Model, writer: Model, monkeypatch: pytest.MonkeyPatch, cache: str, static: bool
) -> None:
    """Also one that ends in the forward that rows which join have of their own, or beside copies
    that make up a number of rows."""
    model, stops = (writer, STOP) if cache == "none" else (lettered(golden), [*"aeiou"])
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    rows = [[*row, number % 5] for number, row in enumerate(ROWS * 4)]
    for length, block_length in ((2, 2), (24, 2), (24, 6)):
        options = {**OPTIONS, "gen_length": length, "block_length": block_length, "cache": cache}
        options |= {"stop": stops, "row_keys": range(len(rows)), "return_order": True}
        whole = dlm.generate(model, rows, **options)
        assert len(set(whole.forwards)) > 1
        for size in (2, 5):
            told = list(dlm.generate_each(model, rows, batch_size=size, **options))
            assert sorted(number for number, _ in told) == list(range(len(rows)))
            for number, one in told:
                assert one.tokens == [whole.tokens[number]]
                assert one.forwards == [whole.forwards[number]]
                assert one.query_tokens == [whole.query_tokens[number]]
                assert one.order is not None
                assert whole.order is not None
                assert one.order == [whole.order[number]]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_caches_and_recorded_steps(
    golden: Model, traced: Callable[..., Execution], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are given up leave as those do that are done."""
    model = lettered(golden)
    options = {
        **OPTIONS,
        "cache": cache,
        "decoder": "threshold",
        "decoder_options": {"threshold": 0.4},
    }
    whole = dlm.generate(model, ROWS, **options)
    assert whole.texts is not None
    stop = [text[8:14] for text in whole.texts[::2]]
    found = dlm.generate(model, ROWS, stop=stop, **options)
    assert found.texts == [until(text, stop) for text in whole.texts]
    assert sum(found.forwards) < sum(whole.forwards)
    execution = traced()
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    for _ in range(3):
        again = dlm.generate(model, ROWS, stop=stop, **options)
        assert (again.texts, again.tokens, again.forwards) == (
            found.texts,
            found.tokens,
            found.forwards,
        )


def test_a_stream_ends(writer: Model) -> None:
    for key in range(8):
        options = {**OPTIONS, "row_keys": [key], "stop": STOP}
        out = dlm.generate(writer, ROWS[0], **options)
        *_, last = dlm.stream(writer, ROWS[0], **options)
        assert out.texts is not None
        assert (last.text, last.tokens, last.forward) == (
            out.texts[0],
            out.tokens[0],
            out.forwards[0],
        )
        assert last.done


def test_one_text_is_a_list_of_one(writer: Model) -> None:
    one, other = (dlm.generate(writer, ROWS, stop=stop, **OPTIONS) for stop in ("ab", ["ab"]))
    assert one == other
    assert dlm.generate(writer, ROWS, stop=(), **OPTIONS) == dlm.generate(writer, ROWS, **OPTIONS)


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], 7, None, ["\ud83d"]])
def test_what_is_no_text_is_refused(writer: Model, stop: Any) -> None:
    with pytest.raises(ValueError, match=r"stop must be|a text of stop must be"):
        dlm.generate(writer, ROWS, stop=stop)


def test_texts_need_a_tokenizer_and_something_that_is_generated(
    writer: Model, toy: Callable[..., Model]
) -> None:
    for call in (dlm.generate, dlm.stream):
        with pytest.raises(ValueError, match="stop needs a tokenizer"):
            call(toy(3), ROWS[0], stop="ab")
    with pytest.raises(ValueError, match="stop is for generate"):
        dlm.infill(writer, [1, 7], stop="ab")
