"""`top_logprobs`, and `logprobs` above 0: the likeliest tokens beside each of an answer."""

import json
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from starlette.testclient import TestClient

import dlm
from dlm.models.model import Model
from dlm.serving.app import create_app
from dlm.serving.engine import Engine
from dlm.serving.group import Group, Laid, Line
from dlm.serving.work import Ended, Event, Grown, Request

HERE = Path(__file__).parent
CASES = SimpleNamespace(**runpy.run_path(str(HERE / "serving_cases.py")))
ASKING = SimpleNamespace(**runpy.run_path(str(HERE / "engine_cases.py")))
USUAL: dict[str, Any] = {"gen_length": 8, "block_length": 4, "seed": 3, "temperature": 1.0}
MESSAGES = [{"role": "user", "content": "Compute: 60/5"}]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


@pytest.fixture(scope="module")
def served(tiny: Model) -> Iterator[TestClient]:
    """The built-in model, served."""
    engine = Engine(tiny)
    yield TestClient(create_app(engine, name="tiny", defaults=USUAL))
    engine.close()


def expected(model: Model, prompt: Any, count: int, **options: Any) -> list[list[Any]]:
    """Names and values of the likeliest tokens, as `dlm.generate` has them."""
    out = dlm.generate(model, prompt, return_top_tokens=20, **{**USUAL, **options})
    assert out.top_tokens is not None
    return [
        [(name_of(model, t), pytest.approx(p, rel=1e-4)) for t, p in top[:count]]
        for top in out.top_tokens[0]
    ]


def name_of(model: Model, token: int) -> Any:
    """Of a special token its name, of another its text, where that is one."""
    tokenizer: Any = model.tokenizer
    if token in tokenizer.all_special_ids:
        return tokenizer.convert_ids_to_tokens(token)
    text = tokenizer.decode([token])
    return ANY if "\ufffd" in text else text


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("decoder", ["low_confidence", "left_to_right", "dream"])
def test_chats_have_lists(served: TestClient, tiny: Model, decoder: str, count: int) -> None:
    """As a whole and in a stream."""
    body: dict[str, Any] = {"messages": MESSAGES, "logprobs": True, "top_logprobs": count}
    body |= {"decoder": decoder, "stop_at_eos": False}
    answer = served.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["logprobs"]["content"]
    found = [[(one["token"], one["logprob"]) for one in each["top_logprobs"]] for each in content]
    tops = expected(tiny, MESSAGES, count, decoder=decoder, stop_at_eos=False)
    assert content
    assert found == tops[: len(content)]
    for one in (one for each in content for one in each["top_logprobs"]):
        plain = one["bytes"] is not None
        assert not plain or bytes(one["bytes"]).decode() == one["token"]
    data = served.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    events = [json.loads(each.removeprefix("data: ")) for each in data[:-2]]
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert [one for part in parts if part for one in part["content"]] == content


def test_completions_have_the_token_itself_too(served: TestClient, tiny: Model) -> None:
    body = {"prompt": "1+1", "logprobs": 2, "temperature": 5.0, "stop_at_eos": False}
    answer = served.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    logprobs = answer.json()["choices"][0]["logprobs"]
    tops = expected(tiny, "1+1", 2, temperature=5.0, stop_at_eos=False)
    outside = 0
    for name, value, found, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], tops, strict=False
    ):
        assert found.pop(name) == value
        others = [pair for pair in top if pair[0] != name]
        assert [*found.items()] == others
        outside += len(others) == 2
    assert outside


def test_requests_of_lists_share_forwards(golden: Model) -> None:
    """With each other, and not with those that pay nothing."""

    def laid(log_probabilities: bool, alternatives: int) -> Laid:
        request = ASKING.Client(golden, [[1, 2, 3]]).request
        more = (request.follow, log_probabilities, alternatives)
        own = Request(request.rows, request.spans, request.settings, *more)
        return Laid.of(golden, Line(0, 1, 0, own, lambda event: None))

    group = Group(laid(True, 2), lambda line, event: None)
    assert group.accepts(laid(True, 20))
    assert not group.accepts(laid(True, 0))
    plain = Group(laid(False, 0), lambda line, event: None)
    assert plain.accepts(laid(True, 0))
    assert plain.terms.settings.return_top_tokens == 0
    assert plain.written.top == 0


def test_nothing_is_kept_of_rows_that_are_over(golden: Model) -> None:
    told: list[Event] = []
    request = ASKING.Client(golden, [[1]], gen_length=4, stop_at_eos=False).request
    own = Request(request.rows, request.spans, request.settings, True, True, 2)
    line = Line(0, 1, 0, own, told.append)
    group = Group(Laid.of(golden, line), lambda line, event: line.tell(event))
    while group.lines:
        group.advance()
    assert group.written.rows == {}
    assert group.written.likeliest == {}
    tops = [event.top_tokens for event in told if isinstance(event, Grown | Ended)]
    assert all(len(top) == 2 for each in tops for top in each or ())
    grown = [top for each in tops[:-1] for top in each or ()]
    assert grown == (tops[-1] or [])[: len(grown)]
    assert grown


def play(tops: list[list[tuple[int, float]]]) -> Callable[[Request], Iterator[Event]]:
    def tell(request: Request) -> Iterator[Event]:
        row = CASES.ids("12")
        yield Ended(0, row, 2, 2, [-1.0, math.nan], tops)

    return tell


def test_bytes_and_special_tokens_are_told_as_such() -> None:
    byte, two = CASES.ids("\u00e9")[0], CASES.ids("2")[0]
    tops = [[(byte, -0.5), (two, -math.inf), (0, -2.0)], []]
    with CASES.servers() as serve:
        server = serve(play(tops))
        ask: Any = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3}
        (choice,) = server.ask("chat/completions", **ask).json()["choices"]
        first, second = choice["logprobs"]["content"]
        assert first["top_logprobs"] == [
            {"token": "\\xc3", "logprob": -0.5, "bytes": [0xC3]},
            {"token": "2", "logprob": -9999.0, "bytes": [0x32]},
            {"token": "<|startoftext|>", "logprob": -2.0, "bytes": None},
        ]
        assert (second["logprob"], second["top_logprobs"]) == (None, [])
        (choice,) = server.ask(logprobs=3).json()["choices"]
        assert choice["logprobs"]["top_logprobs"] == [
            {"bytes:\\xc3": -0.5, "2": -9999.0, "<|startoftext|>": -2.0, "1": -1.0}, {"2": None},
        ]  # fmt: skip
