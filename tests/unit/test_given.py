"""Prompts in what people hold them in: tensors, arrays, tokenizers' outputs, iterators, parts."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import dlm
from dlm.models.model import Model

ROW = [70, 71, 72]
TEXT = "Compute: 60/5"
PARTS = [{"type": "text", "text": "Compute: "}, {"type": "text", "text": "60/5"}]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor(ROW),
        torch.tensor([ROW], dtype=torch.int32),
        [torch.tensor(ROW)],
        (torch.tensor(ROW),),
        np.array(ROW),
        np.array([ROW], dtype=np.int16),
        [np.array(ROW)],
        {"input_ids": ROW},
        {"input_ids": torch.tensor(ROW)},
        {"input_ids": [[*ROW, 0]], "attention_mask": [[1, 1, 1, 0]]},
        {"input_ids": torch.tensor([[0, *ROW]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])},
        {"input_ids": [0, *ROW], "attention_mask": [0, 1, 1, 1], "token_type_ids": [0, 0, 0, 0]},
        {"input_ids": list(np.array(ROW)), "attention_mask": [1, 1, 1]},
        [{"input_ids": torch.tensor([ROW]), "attention_mask": torch.ones(1, 3)}],
        iter([ROW]),
        (row for row in [ROW]),
    ],
)
def test_token_ids_are_a_prompt_whatever_holds_them(tiny: Model, given: Any) -> None:
    assert dlm.encode_prompts(tiny, given) == [ROW]


def test_several_rows_are_several_prompts(tiny: Model) -> None:
    rows = [[70, 71], [72, 73]]
    for given in (torch.tensor(rows), np.array(rows), {"input_ids": rows}, iter(rows)):
        assert dlm.encode_prompts(tiny, given) == rows
    each = [{"input_ids": row} for row in rows]
    assert dlm.encode_prompts(tiny, each) == rows
    padded = {"input_ids": [[70, 71], [72, 0]], "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert dlm.encode_prompts(tiny, padded) == [[70, 71], [72]]


def test_what_a_tokenizer_gave_is_the_text(tiny: Model) -> None:
    assert tiny.tokenizer is not None
    for options in ({}, {"return_tensors": "pt"}, {"return_tensors": "np"}):
        assert dlm.encode_prompts(tiny, tiny.tokenizer(TEXT, **options)) == dlm.encode_prompts(
            tiny, TEXT
        )


def test_texts_of_an_iterator_are_decoded_each(tiny: Model) -> None:
    expected = dlm.generate(tiny, [TEXT, "a"], gen_length=4)
    made = dict(dlm.generate_each(tiny, (text for text in (TEXT, "a")), gen_length=4))
    assert [made[number].tokens[0] for number in (0, 1)] == expected.tokens


def test_the_parts_of_a_message_are_its_text(tiny: Model) -> None:
    whole, parts = ([{"role": "user", "content": content}] for content in (TEXT, PARTS))
    assert dlm.encode_prompts(tiny, parts) == dlm.encode_prompts(tiny, whole)


@pytest.mark.parametrize("image", [torch.zeros(3, 4), np.zeros((3, 4)), b"png"])
def test_a_part_that_is_no_text_is_refused(tiny: Model, image: Any) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    with pytest.raises(ValueError, match=r'parts of a .* must be {"type": "text"'):
        dlm.encode_prompts(tiny, chat)


def test_blanks_and_likelihoods_take_them_too(tiny: Model) -> None:
    mask = tiny.spec.mask_id
    row = [*ROW, mask, 74]
    assert dlm.infill(tiny, torch.tensor(row)).tokens == dlm.infill(tiny, row).tokens
    one, other = (
        dlm.log_likelihood(tiny, prompt, "1", samples=4) for prompt in (torch.tensor(ROW), ROW)
    )
    assert one == other
    pairs: list[Any] = [[("ab", "1")], [["ab", "1"]], np.array([["ab", "1"]]), [iter(("ab", "1"))]]
    told = [next(dlm.log_likelihoods(tiny, pair, samples=4)) for pair in pairs]
    assert {each.log_likelihood for each in told} == {told[0].log_likelihood}
    ids = tiny.tokenizer("1", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    answer: Any = torch.tensor(ids)
    alone = dlm.log_likelihood(tiny, "ab", answer, samples=4)
    assert alone == pytest.approx(told[0].log_likelihood, abs=1e-4)


class Table:
    """As pandas' DataFrame: its columns' names are what it is iterated over."""

    ndim = 2

    def __iter__(self) -> Iterator[str]:
        return iter(["prompt"])


REFUSED: list[tuple[Callable[[Model], object], str]] = [
    (lambda m: dlm.generate(m, torch.tensor(3)), "prompts must be a text, token ids"),
    (lambda m: dlm.generate(m, torch.tensor([1.5])), "token ids must be an int >= 0, got 1.5"),
    (lambda m: dlm.generate(m, torch.zeros(1, 1, 2, dtype=torch.int64)), r"int >= 0, got \[0, 0\]"),
    (lambda m: dlm.generate(m, np.array([])), "non-empty list of those"),
    (lambda m: dlm.generate(m, Table()), "prompts must be a text, token ids"),
    (lambda m: dlm.generate(m, torch.empty(3, device="meta")), "prompts must be a text"),
    (lambda m: dlm.generate(m, {TEXT}), "prompts must be a text"),  # in no order
    (lambda m: dlm.generate(m, {"text": TEXT}), "prompts must be a text"),
    (
        lambda m: dlm.generate(m, {"input_ids": [[1, 2]], "attention_mask": [[1]]}),
        "attention_mask must have the shape of input_ids",
    ),
    (
        lambda m: dlm.generate(m, [{"role": "user", "content": [{"type": "image_url"}]}]),
        "parts of a chat message must be",
    ),
    (lambda m: dlm.generate(m, [{"role": "user", "content": None}]), "must have texts role and"),
    (lambda m: dlm.infill(m, [{"role": "user", "content": "[MASK]"}]), "got chat messages: token"),
    (lambda m: dlm.infill(m, [1, 2]), "has no blank: write the mask id 5 where tokens are"),
    (lambda m: list(dlm.log_likelihoods(m, ["ab"])), "a prompt and an answer each, got 'ab'"),  # type: ignore[list-item]
    (lambda m: dlm.generate(m.network, TEXT), r"made of a network, got a LLaDAModelLM$"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_holds_no_prompt_is_refused(
    tiny: Model, call: Callable[[Model], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny)


def test_the_built_in_model_loads_under_its_name(tiny: Model) -> None:
    assert dlm.load("built-in").spec == tiny.spec


def test_networks_take_inputs_by_transformers_name(tiny: Model) -> None:
    ids = torch.tensor([ROW])
    one, other = (
        tiny.network.generate(**{name: ids}, max_new_tokens=4) for name in ("inputs", "input_ids")
    )
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="inputs is input_ids by another name"):
        tiny.network.generate(ids, inputs=ids)
