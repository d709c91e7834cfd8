"""How texts with blanks are laid out, and that the server lays them out alike."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

import dlm
from dlm.models.loading import silence
from dlm.models.model import Model
from dlm.prompts import encode_texts
from dlm.serving.protocol import Asked, read_request
from dlm.serving.refusals import wrong_of

FRONT, BACK = 1, 3  # ids of the built-in tokenizer
MARKED = ("built in", "closing", "framed", "bert")
KINDS = (*MARKED, "unmarked", "closing, unmarked", "framed, unmarked")


def changed(model: Model, mark: str | None, processor: Any = None) -> Model:
    """With a tokenizer that has another mask token, or puts ids around a text."""
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    tokenizer.mask_token = mark
    if processor is not None:
        tokenizer.backend_tokenizer.post_processor = processor
    return replace(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def models(written: Callable[[str], Path]) -> Mapping[str, Model]:
    """Models that lay texts out in their own ways."""
    with silence():
        built_in, bert = dlm.load(), dlm.load(written("encoder"))
    tokenizer: Any = built_in.tokenizer
    mask = tokenizer.mask_token
    around = [(tokenizer.convert_ids_to_tokens(id), id) for id in (FRONT, BACK)]
    processor = TemplateProcessing(
        single=f"{around[0][0]} $A {around[1][0]}", special_tokens=around
    )
    closing = changed(built_in, mask, processor)
    asks = replace(built_in.spec, expand_id=40, frame=((FRONT,), (BACK,)))
    framed = replace(closing, spec=asks)
    return {
        "built in": built_in,
        "unmarked": changed(built_in, None),
        "closing": closing,
        "closing, unmarked": changed(closing, None),
        "framed": framed,
        "framed, unmarked": changed(framed, None),
        "bert": bert,
    }


def ids(model: Model, text: str) -> list[int]:
    tokenizer: Any = model.tokenizer
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ask(model: Model, **body: Any) -> Asked:
    data = json.dumps({"max_tokens": 4, **body}).encode()
    return read_request(data, chat=False, model=model, name="m", defaults={})


def test_what_a_tokenizer_puts_around_a_text_goes_around_all_of_it(
    models: Mapping[str, Model],
) -> None:
    for kind in ("closing", "closing, unmarked"):
        model = models[kind]
        expected = [FRONT, *ids(model, "3"), model.spec.mask_id, *ids(model, "4"), BACK]
        assert encode_texts(model, "3[MASK]4") == [expected]
        assert encode_texts(model, "[MASK]") == [[FRONT, model.spec.mask_id, BACK]]


def test_blanks_that_a_tokenizer_takes_together_are_refused(models: Mapping[str, Model]) -> None:
    model = changed(models["built in"], "[MASK]")
    tokenizer: Any = model.tokenizer
    alone = AddedToken("[MASK]", single_word=True, special=True)
    tokenizer.add_special_tokens({"mask_token": alone})
    spec = replace(model.spec, mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match=r"a token of each blank, got \d of 4"):
        encode_texts(replace(model, spec=spec), "3[MASK:4]4")


@pytest.mark.parametrize("kind", ["framed", "framed, unmarked"])
def test_rows_that_grow_stand_between_begin_and_end_of_text(
    models: Mapping[str, Model], kind: str
) -> None:
    """As DreamOn's authors lay them out, whatever its tokenizer puts around a text."""
    model = models[kind]
    blanks = [model.spec.mask_id] * 4
    expected = [FRONT, *ids(model, "3+4="), *blanks, *ids(model, ". 4*7"), BACK]
    assert dlm.encode_infill(model, "3+4=", ". 4*7", 4) == expected
    assert encode_texts(model, "3+4=[MASK:4]. 4*7") == [expected]
    assert encode_texts(model, "[MASK]") == [[FRONT, model.spec.mask_id, BACK]]


def test_what_a_text_has_by_itself_is_not_put_there_again(models: Mapping[str, Model]) -> None:
    model = models["framed"]
    tokenizer: Any = model.tokenizer
    front, back = tokenizer.convert_ids_to_tokens([FRONT, BACK])
    for text in ("3[MASK]4", f"{front}3[MASK]4", f"3[MASK]4{back}", f"{front}3[MASK]4{back}"):
        assert encode_texts(model, text) == encode_texts(model, "3[MASK]4")
    assert encode_texts(model, [7, model.spec.mask_id]) == [[7, model.spec.mask_id]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["a = 2+ ", ""])
def test_what_is_served_in_front_of_a_suffix_is_what_infill_lays_out(
    models: Mapping[str, Model], kind: str, prompt: str
) -> None:
    model = models[kind]
    asked = ask(model, prompt=[prompt, "b"], suffix=" =4\n")
    for text, row, (begin, end) in zip(
        (prompt, "b"), asked.request.rows, asked.request.spans, strict=True
    ):
        assert [row] == encode_texts(model, f"{text}[MASK:4] =4\n")
        assert (
            row[begin:end] == [model.spec.mask_id] * 4 == [*filter(model.spec.mask_id.__eq__, row)]
        )
    closed = len(model.spec.suffix)
    assert asked.prompt_tokens == sum(len(row) - 4 - closed for row in asked.request.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_are_taken_as_they_are_in_front_of_a_suffix(
    models: Mapping[str, Model], kind: str
) -> None:
    model = models[kind]
    (row,) = ask(model, prompt=[7, 8], suffix="=4").request.rows
    (whole,) = encode_texts(model, "[MASK:4]=4")
    assert row == [7, 8, *whole[whole.index(model.spec.mask_id) :]]


def test_an_empty_prompt_is_no_row_that_begins_with_a_blank_where_none_may(
    models: Mapping[str, Model],
) -> None:
    unmarked = changed(models["unmarked"], None, TemplateProcessing(single="$A"))
    shifted = replace(unmarked, spec=replace(unmarked.spec, shift=True))
    assert ask(unmarked, prompt="", suffix="4").request.spans == [(0, 4)]
    with pytest.raises(ValueError, match="prompt must not be empty for llada, which predicts"):
        ask(shifted, prompt="", suffix="4")


def test_rows_too_long_name_what_they_are_of(models: Mapping[str, Model]) -> None:
    model = models["built in"]
    model = replace(model, spec=replace(model.spec, max_length=9))
    bodies: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "1234567"}, "prompt"),
        ({"prompt": "1234567", "suffix": "123456"}, "prompt, suffix"),
        ({"prompt": "1", "suffix": "1234567"}, "suffix, prompt"),
        ({"prompt": [""], "suffix": "1234567"}, "suffix"),
    ]
    for body, what in bodies:
        match = f"^{what} and max_tokens must fit the model's 9 pos"
        with pytest.raises(ValueError, match=match) as caught:
            ask(model, **body)
        assert wrong_of(caught.value).param == what.partition(",")[0]
