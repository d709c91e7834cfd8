"""Bodies whose texts are long, that leave room or none, and texts that are filled in between."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

import dlm
from dlm.growth import Growth
from dlm.models.model import Model
from dlm.prompts import encode_prompts
from dlm.reading import vocabulary_of
from dlm.serving import encoding, fields
from dlm.serving.protocol import Asked, read_request

MESSAGES = [{"role": "user", "content": "Compute: 60/5"}]

Ask = Callable[..., Asked]


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model, whose tokenizer has a chat template."""
    return dlm.load()


def read(model: Model, defaults: Mapping[str, Any] | None = None, **body: Any) -> Asked:
    """What a body asks of a model."""
    usual = {"gen_length": 16, "seed": 0} if defaults is None else defaults
    data = json.dumps(body).encode()
    return read_request(data, chat="messages" in body, model=model, name="m", defaults=usual)


def ids(model: Model, text: str) -> list[int]:
    tokenizer: Any = model.tokenizer
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_suffix_stands_behind_what_is_decoded(tiny: Model) -> None:
    after = ids(tiny, "=4")
    asked = read(tiny, prompt=["2+", "1+"], suffix="=4", max_tokens=2, n=2)
    prompts = [prompt for prompt in encode_prompts(tiny, ["2+", "1+"]) for _ in range(2)]
    assert asked.request.rows == [[*prompt, 5, 5, *after] for prompt in prompts]
    assert asked.request.spans == [(len(prompt), len(prompt) + 2) for prompt in prompts]
    assert asked.prompt_tokens == sum(map(len, prompts[::2])) + 2 * len(after)
    closed = replace(tiny, spec=replace(tiny.spec, suffix=(4,)))
    row = read(closed, prompt=[7], suffix="=4", max_tokens=1).request.rows[0]
    assert row == [7, 5, *after, 4]


def test_stop_tokens_end_nothing_in_front_of_a_suffix_unless_they_should(tiny: Model) -> None:
    def stops(defaults: Mapping[str, Any] | None = None, **body: Any) -> bool:
        return read(tiny, defaults, prompt="a", **body).request.settings.stop_at_eos

    assert stops()
    assert not stops(suffix="b")
    assert not stops({"stop_at_eos": True}, suffix="b")
    assert not stops(suffix="b", stop_at_eos=None)
    assert stops(suffix="b", stop_at_eos=True)
    assert not stops(suffix="b", stop_at_eos=False)


def test_a_server_s_own_padding_goes_with_an_end(tiny: Model) -> None:
    def pads(**body: Any) -> bool:
        settings = read(tiny, {"pad_after_eos": True}, prompt="a", **body).request.settings
        return settings.pad_after_eos

    assert pads()
    assert not pads(pad_after_eos=False)
    assert not pads(stop_at_eos=False)
    assert not pads(suffix="b")
    with pytest.raises(ValueError, match="pad_after_eos goes with stop_at_eos, got True with Fal"):
        pads(stop_at_eos=False, pad_after_eos=True)


def test_an_empty_suffix_is_none(tiny: Model) -> None:
    for suffix in ("", None):
        assert read(tiny, prompt="a", suffix=suffix) == read(tiny, prompt="a")


def test_a_suffix_holds_no_mask(tiny: Model) -> None:
    tokenizer: Any = tiny.tokenizer
    mask = tokenizer.convert_ids_to_tokens(tiny.spec.mask_id)
    with pytest.raises(ValueError, match=r"suffix must not hold the mask .*, id 5"):
        read(tiny, prompt="a", suffix=f"b{mask}")


def test_a_suffix_needs_a_tokenizer(tiny: Model) -> None:
    with pytest.raises(ValueError, match="suffix needs a tokenizer"):
        read(replace(tiny, tokenizer=None), prompt=[7], suffix="a")


def short(model: Model, length: int) -> Model:
    return replace(model, spec=replace(model.spec, max_length=length))


@pytest.mark.parametrize(
    ("prompt", "more", "length"),
    [
        ([7] * 4, {}, 16),
        ([7] * 14, {}, 16),
        ([7] * 15, {}, 15),
        ([[7], [7] * 25], {}, 5),
        ([7] * 29, {}, 1),
        ([7] * 25, {"suffix": "777"}, 2),
        ([7] * 25, {"max_tokens": 3}, 3),
    ],
)
def test_a_length_that_is_not_stated_is_what_is_left(
    tiny: Model, prompt: Any, more: dict[str, Any], length: int
) -> None:
    model = short(tiny, 31)
    model = replace(model, spec=replace(model.spec, suffix=(4,)))
    assert len(ids(tiny, "777")) == 3
    request = read(model, prompt=prompt, **more).request
    assert request.settings.gen_length == length
    assert {end - begin for begin, end in request.spans} == {length}
    assert max(map(len, request.rows)) <= 31


def test_a_chat_takes_what_is_left(tiny: Model) -> None:
    (prompt,) = encode_prompts(tiny, MESSAGES)
    model = short(tiny, len(prompt) + 3)
    assert read(model, messages=MESSAGES).request.settings.gen_length == 3
    with pytest.raises(ValueError, match=f"got {len(prompt) + 4} tokens"):
        read(model, messages=MESSAGES, max_completion_tokens=4)


def test_a_prompt_must_leave_room(tiny: Model) -> None:
    with pytest.raises(ValueError, match="must fit the model's 31 positions, got 32 tokens"):
        read(short(tiny, 31), prompt=[7] * 31)
    with pytest.raises(ValueError, match="must fit the model's 31 positions, got 35 tokens"):
        read(short(tiny, 31), prompt=[7] * 30, max_tokens=5)


def unlooked(*args: Any, **options: Any) -> Any:
    raise AssertionError("looked at")


def test_too_many_prompts_are_not_looked_at(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "read_prompts", unlooked)
    for prompt in ("a", [7]):
        with pytest.raises(ValueError, match="must be at most 1024, got 1025 times 1"):
            read(tiny, prompt=[prompt] * 1025)


def test_too_long_prompts_are_not_looked_at(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "read_prompts", unlooked)
    for prompt in ([7] * 513, [[7], [8] * 513]):
        with pytest.raises(ValueError, match="512 positions, got 513 tokens"):
            read(tiny, prompt=prompt)


def test_texts_that_no_tokens_fit_are_not_tokenized(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = vocabulary_of(tiny.tokenizer).longest
    model = short(tiny, 3)
    fits, over = "a" * 3 * longest, "a" * (3 * longest + 1)
    for body in ({"prompt": fits}, {"prompt": [fits]}, {"prompt": [7], "suffix": fits}):
        with pytest.raises(ValueError, match=r"3 positions, got \d+ tokens"):
            read(model, **body)
    monkeypatch.setattr(encoding, "encode_prompts", unlooked)
    monkeypatch.setattr(encoding, "encode_infill", unlooked)
    match = f"must fit the model's 3 positions, got {len(over)} characters"
    for body in ({"prompt": over}, {"prompt": ["a", over]}):
        with pytest.raises(ValueError, match=f"prompt {match}"):
            read(model, **body)
    with pytest.raises(ValueError, match=f"suffix {match}"):
        read(model, prompt=[7], suffix=over)
    said = {"role": "u", "content": over[:-2]}
    with pytest.raises(ValueError, match=f"messages {match}"):
        read(model, messages=[said, {"role": "v", "content": ""}])


LONG = "temperature" * 50_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({LONG: 1}, f"unknown field '{LONG[:100]}'"),
        ({"stream": True, "stream_options": {LONG: 1}}, f"'{LONG[:100]}'. Did|'{LONG[:100]}'. Kn"),
        ({"decoder": LONG}, f"unknown decoder '{LONG[:100]}'"),
        ({"cache": LONG}, f"unknown cache '{LONG[:100]}'"),
        ({"decoder_options": {LONG: 1}}, "names in decoder_options must be at most 100 char"),
    ],
)
def test_long_names_are_cut(tiny: Model, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tiny, prompt="a", **body)
    assert len(str(caught.value)) < 3000


def test_long_names_of_variables_are_not_looked_for(tiny: Model) -> None:
    with pytest.raises(ValueError, match=f"variables of the template, got '{LONG[:100]}'"):
        read(tiny, messages=MESSAGES, chat_template_kwargs={LONG: 1})


def test_blanks_in_front_of_a_suffix_grow_where_the_model_asks_for_it(tiny: Model) -> None:
    asks = replace(tiny, spec=replace(tiny.spec, expand_id=40))
    body: dict[str, Any] = {"prompt": "2+", "suffix": "=4"}
    found = read(asks, max_tokens=9, **body)
    assert found.request.rows[0].count(5) == 4
    assert found.request.growth == Growth.of(9, None)
    assert read(asks, max_tokens=3, **body).request.rows[0].count(5) == 3
    assert read(asks, max_tokens=9, blanks=1, n=2, **body).request.rows[1].count(5) == 1
    assert read(asks, prompt="2+", max_tokens=9).request.growth is None
    assert read(tiny, max_tokens=9, **body).request.growth is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"blanks": 0, "suffix": "=4"}, "blanks must be an int >= 1, got 0"),
        ({"blanks": 10, "suffix": "=4"}, "blanks must be an int <= 9, got 10"),
        ({"blanks": 2}, "blanks is for a suffix and a model that asks for blanks, got 2"),
        ({"suffix": "=4", "logprobs": 0}, "logprobs is not for blanks that grow: positions move"),
        ({"suffix": "=4", "steps": 3}, "steps is not for blanks that grow"),
        ({"suffix": "=4", "stop_at_eos": True}, "stop_at_eos is not for blanks that grow"),
        ({"suffix": "=4", "decoder": "wino"}, "decoder must not take tokens back where blanks"),
    ],
)
def test_what_cannot_be_asked_of_blanks_that_grow(
    tiny: Model, body: dict[str, Any], message: str
) -> None:
    asks = replace(tiny, spec=replace(tiny.spec, expand_id=40))
    with pytest.raises(ValueError, match=message):
        read(asks, prompt="2+", max_tokens=9, **body)


def test_blanks_count_by_what_they_may_grow_to(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = replace(tiny, spec=replace(tiny.spec, expand_id=40))
    body: dict[str, Any] = {"prompt": "2+", "suffix": "=4", "blanks": 1, "n": 2}
    row = read(asks, max_tokens=9, **body).request.rows[0]
    assert row.count(5) == 1
    most = len(row) - 1 - len(tiny.spec.suffix) + 9
    monkeypatch.setattr("dlm.serving.protocol.MOST_TOKENS", 2 * most)
    assert read(asks, max_tokens=9, **body).request.rows == [row, row]
    with pytest.raises(ValueError, match="all choices must hold at most"):
        read(asks, max_tokens=10, **body)


def test_blanks_of_a_model_that_asks_for_none_are_refused(tiny: Model) -> None:
    with pytest.raises(ValueError, match="blanks is for a suffix and a model that asks"):
        read(tiny, prompt="2+", suffix="=4", blanks=2)
