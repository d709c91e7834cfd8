"""What callers give is taken for what it is, whatever its type, or refused."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlm
from dlm import decoders
from dlm.cli.inputs import Row, parse_prompts
from dlm.models.model import Model
from dlm.options import integer, integers
from dlm.settings import Settings

SURROGATE = "a\ud800"


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"gen_length": np.uint8(230)}, {"gen_length": 230}),
        ({"top_k": np.int8(20), "temperature": 1}, {"top_k": 20, "temperature": 1.0}),
        ({"temperature": Fraction(1, 2)}, {"temperature": 0.5}),
        ({"temperature": 10**30}, {"temperature": 1e30}),
        ({"position_temperature": 10**30}, {"position_temperature": 1e30}),
    ],
)
def test_options_of_any_type(golden: Model, given: dict[str, Any], same: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"gen_length": 8, "seed": 3}
    rows = [[1, 2, 3], [4] * 26]
    found = dlm.generate(golden, rows, **{**usual, **given})
    assert found == dlm.generate(golden, rows, **{**usual, **same})
    assert len(found.tokens[0]) > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": 10**30}),
        ("local_leap", {"threshold": Fraction(9, 10), "radius": np.uint8(2)}),
        ("pc_sampler", {"alpha": 10**30, "lambda_": Fraction(1, 4)}),
    ],
)
def test_options_of_decoders(golden: Model, name: str, options: dict[str, Any]) -> None:
    made = decoders.make(name, **options)
    for option in options:
        assert type(getattr(made, option)) in (int, float)
    assert dlm.generate(golden, [[1, 2]], gen_length=4, decoder=name, decoder_options=options)


def test_what_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number in"):
        Settings(decoder="pc_sampler", decoder_options={"alpha": 1e308})


@pytest.mark.parametrize("call", [
    lambda model: dlm.generate(model, SURROGATE),
    lambda model: dlm.generate(model, [{"role": "user", "content": SURROGATE}]),
    lambda model: dlm.infill(model, SURROGATE + "[MASK]"),
    lambda model: dlm.log_likelihood(model, "a", SURROGATE),
])  # fmt: skip
def test_text_that_no_file_holds_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="must be text that UTF-8 can hold"):
        call(dlm.load())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_order": True}, "return_order must go with return_dict_in_generate=True"),
        ({"return_top_tokens": 2}, "return_top_tokens must go with return_dict_in_generate=True"),
        ({"return_trajectory": True}, "return_trajectory must go with"),
        ({"pad_token_id": 99999}, "pad_token_id must be an int <= 511"),
    ],
)
def test_what_transformers_could_not_give_back_is_refused(
    golden: Model, options: dict[str, Any], message: str
) -> None:
    network: Any = golden.network
    with pytest.raises(ValueError, match=message):
        network.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, **options)


def test_a_jsonl_file_has_objects_only() -> None:
    with pytest.raises(ValueError, match=r"prompts.jsonl:1 must be a JSON object"):
        parse_prompts('{bad\n{"prompt": "a"}', "prompts.jsonl")
    assert parse_prompts("{bad", "prompts.txt") == [Row("{bad")]


def test_what_is_no_model_is_not_released() -> None:
    with pytest.raises(ValueError, match=r"model must be what dlm.load gave"):
        dlm.release(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 10, True, np.True_, 2.0, "3", None, 1 << 80])
@pytest.mark.parametrize("behind", [(), (-5, 99)])  # of several the first is named
def test_many_ints_are_refused_as_one_is(wrong: Any, behind: tuple[int, ...]) -> None:
    values = [*range(10), wrong, *behind]
    with pytest.raises(ValueError, match="ids must be an int") as one:
        integer("ids", wrong, least=0, most=9)
    with pytest.raises(ValueError, match="ids must be an int") as many:
        integers("ids", values, least=0, most=9)
    assert str(many.value) == str(one.value)


@pytest.mark.parametrize("values", [[], (), range(10), [0, 9], [np.int8(3), 9], np.array([1]).data])
def test_many_ints_are_taken_as_one_is(values: Any) -> None:
    found = integers("ids", values, least=0, most=9)
    assert found == [*values]
    assert {type(value) for value in found} <= {int}


def test_ids_that_are_suppressed_twice_count_once(golden: Model) -> None:
    few = {"suppress_tokens": [*range(500)], "begin_suppress_tokens": [*range(500)]}
    Settings(**few).check_model(golden.spec)  # type: ignore[arg-type]
    assert golden.spec.vocab_size < 1000


@pytest.mark.parametrize("chain", [{}, {"estimator": "chain"}])
@pytest.mark.parametrize("options", [{"samples": 40}, {"batch_size": 2, "samples": 6}])
def test_numbers_of_a_likelihood(
    golden: Model, options: dict[str, Any], chain: dict[str, Any]
) -> None:
    narrow: dict[str, Any] = {name: np.uint8(value) for name, value in options.items()}
    usual = dlm.log_likelihood(golden, [5, 6], [7, 8, 9], **options, **chain)
    assert dlm.log_likelihood(golden, [5, 6], [7, 8, 9], **narrow, **chain) == usual
    assert next(dlm.log_likelihoods(golden, [([5, 6], [7, 8, 9])], **narrow, **chain))


@pytest.mark.parametrize("pairs", [None, 3, "ab", torch.tensor(3)])
def test_pairs_are_some(golden: Model, pairs: Any) -> None:
    with pytest.raises(ValueError, match="pairs must be a list of prompts and answers, got"):
        dlm.log_likelihoods(golden, pairs)


@pytest.mark.parametrize("gib", [np.int32(2), np.uint8(2), np.float16(2), 2])
def test_the_size_of_a_cache(written: Callable[[str], Path], gib: Any) -> None:
    assert dlm.PromptCache(dlm.load(written("sdar")), gib=gib).bytes == 2 << 30


API: Any = dlm
LONG = "a" * 5000


@pytest.mark.parametrize(("call", "message"), [
    (lambda model: API.load(device=[]), r"device must be a torch device, got \[\]"),
    (lambda model: API.load(device=True), "device must be a torch device, got True"),
    (lambda model: API.load(device_map=["cpu"]), r"device_map must be .*, got \['cpu'\]"),
    (lambda model: API.load(device_map={}), r"device_map must be .*, got \{\}"),
    (lambda model: API.load(device_map=True), "device_map must be .*, got True"),
    (lambda model: API.load(device_map={1: 2}), r"device_map must be .*, got \{1: 2\}"),
    (lambda model: API.load(device_map={"a": 0.5}), r"device_map must be .*, got \{'a': 0.5\}"),
    (lambda model: API.generate(model, [1], decoder="schedule", decoder_options={"path": LONG}),
     "path must be a file that exists, got 'aaa"),
    (lambda model: API.decoders.make("schedule", path=Path("/x")),
     "path must be a file that exists, got '/x'"),
    (lambda model: API.recommended(LONG), "unknown checkpoint with recommended settings 'aaa"),
    (lambda model: API.infill(model, [[1]], broadcast_deletion=[]), "broadcast_deletion must be T"),
    (lambda model: API.encode_prompts(model, [[1], [2]], chat_options=[]),
     r"^chat_options must be a mapping, got \[\]"),
])  # fmt: skip
def test_what_nothing_can_be_made_of(golden: Model, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(golden)


@pytest.mark.parametrize("options", [{"name_or_path": LONG}, {"adapter": LONG}])
def test_no_name_is_too_long(options: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError, match="folder at 'aaa"):
        dlm.load(**options)


def test_a_size_beyond_any(written: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"gib must be a finite number in \[0, 2.1"):
        dlm.PromptCache(dlm.load(written("sdar")), gib=1e300)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, {"": torch.device("cpu")}, "auto"])
def test_maps_that_are_some(device_map: Any) -> None:
    assert dlm.load(device_map=device_map).device.type == "cpu"


def test_token_ids_may_be_in_arrays(golden: Model) -> None:
    """As prompts may."""
    given: dict[str, Any] = {
        "suppress_tokens": [3, 4],
        "begin_suppress_tokens": [7],
        "row_keys": [9],
    }
    options: dict[str, Any] = {"gen_length": 8, "temperature": 1.0, "stop_at_eos": False}
    expected = dlm.generate(golden, [5], **options, **given)
    for array in (np.array, torch.tensor):
        arrays: dict[str, Any] = {name: array(ids) for name, ids in given.items()}
        assert dlm.generate(golden, [5], **options, **arrays).tokens == expected.tokens


def test_one_message_is_no_chat(golden: Model) -> None:
    with pytest.raises(ValueError, match="prompts must be lists of chat messages, got one message"):
        dlm.generate(golden, {"role": "user", "content": "x"})
