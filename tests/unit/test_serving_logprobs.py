"""`logprobs`: of each token of an answer how sure the model was when it wrote it."""

import json
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

import dlm
from dlm.batch import denoise
from dlm.models.model import Model
from dlm.prompts import whole_text
from dlm.runtime import Step
from dlm.serving.app import create_app
from dlm.serving.engine import Engine
from dlm.serving.group import Group, Laid, Line
from dlm.serving.work import Ended, Event, Grown, Request

HERE = Path(__file__).parent
CASES = SimpleNamespace(**runpy.run_path(str(HERE / "serving_cases.py")))
ASKING = SimpleNamespace(**runpy.run_path(str(HERE / "engine_cases.py")))

Serve = Callable[..., Any]
Toy = Callable[..., Model]
DECODING = [
    ("low_confidence", {}), ("left_to_right", {}), ("saber", {}), ("wino", {}),
    ("block_refinement", {"threshold": 0.3, "editing_threshold": 0.2}),
    ("remdm", {"loop_steps": 3}), ("schedule", {}), ("first_hitting", {"order": 2}),
]  # fmt: skip


class Client(ASKING.Client):  # type: ignore[misc,name-defined]
    """Asks for log-probabilities too."""

    request: Request

    def __init__(self, *given: Any, asks: bool = True, **options: Any) -> None:
        super().__init__(*given, **options)
        request = self.request
        self.request = Request(request.rows, request.spans, request.settings, request.follow, asks)
        self.asks = asks
        self.values: dict[int, list[float]] = {row: [] for row in range(len(request.rows))}

    def hear(self, event: Event) -> None:
        super().hear(event)
        assert isinstance(event, Grown | Ended)
        assert (event.log_probabilities is not None) == self.asks
        if isinstance(event, Grown) and event.log_probabilities is not None:
            assert len(event.log_probabilities) == len(event.tokens)
            self.values[event.row] += event.log_probabilities

    def check(self) -> None:
        super().check()
        if not self.asks:
            return
        out = dlm.generate(self.model, self.prompts, return_trajectory=True, **self.options)
        assert out.log_probabilities is not None
        for row, end in self.ends.items():
            expected = pytest.approx(out.log_probabilities[row], rel=1e-5, nan_ok=True)
            assert end.log_probabilities == expected
            grown = self.values[row]
            assert grown == pytest.approx(end.log_probabilities[: len(grown)], nan_ok=True)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("decoder", "options"), DECODING)
def test_rows_have_what_generate_gives(toy: Toy, decoder: str, options: dict[str, Any]) -> None:
    """Alone and beside others, those that do not ask included, and as they become final."""
    model = toy(5)
    own: dict[str, Any] = {"decoder": decoder, "decoder_options": options}
    engine = Engine(model, batch_size=4)
    with engine.news:
        clients = [
            Client(model, [[1, 2, 3], [4]], follow=True, seed=5, **own).ask(engine),
            Client(model, [[1, 2]], asks=False, follow=True, **own).ask(engine),
            Client(model, [[3] * 9], gen_length=8, **own).ask(engine),
            Client(model, [[2]], follow=True, stop_at_eos=False, **own).ask(engine),
        ]
    for client in clients:
        client.check()
    alone = Client(model, [[1, 2, 3], [4]], seed=5, **own).ask(engine)
    alone.check()
    engine.close()
    together = {row: end.log_probabilities for row, end in clients[0].ends.items()}
    for row, end in alone.ends.items():
        assert end.log_probabilities == pytest.approx(together[row], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("decoder", "shares"),
    [
        ("low_confidence", True), ("saber", True), ("left_to_right", False), ("random", False),
        ("schedule", False),  # what it is bound to may look at something else
    ],
)  # fmt: skip
def test_rows_share_forwards_where_nothing_more_is_measured(
    golden: Model, decoder: str, shares: bool
) -> None:
    def laid(asks: bool) -> Laid:
        client = Client(golden, [[1, 2, 3]], asks=asks, decoder=decoder)
        return Laid.of(golden, Line(0, 1, 0, client.request, lambda event: None))

    plain = Group(laid(False), lambda line, event: None)
    assert plain.accepts(laid(True)) == shares
    assert not plain.terms.settings.return_trajectory


def test_who_does_not_ask_pays_nothing(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statistic, and nothing brought to the host."""
    seen: list[bool] = []

    def watched(*args: Any) -> Iterator[Step]:
        for step in denoise(*args):
            seen.append(step.view.confidence is None)
            yield step

    monkeypatch.setattr("dlm.serving.group.denoise", watched)
    engine = Engine(golden)
    with monkeypatch.context() as patch:
        patch.setattr("dlm.trajectory.listed", None)
        Client(golden, [[1]], asks=False, decoder="left_to_right", gen_length=4).ask(engine).check()
    assert seen
    assert all(seen)
    engine.close()


def test_nothing_is_kept_of_rows_that_are_over(golden: Model) -> None:
    client = Client(golden, [[1], [2, 3]], gen_length=4)
    line = Line(0, 1, 0, client.request, client.tell)
    group = Group(Laid.of(golden, line), lambda line, event: line.tell(event))
    while group.lines:
        group.advance()
    assert group.written.rows == {}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


@pytest.fixture(scope="module")
def served(tiny: Model) -> Iterator[TestClient]:
    """The built-in model, served."""
    engine = Engine(tiny)
    defaults = {"gen_length": 12, "block_length": 6, "seed": 3, "temperature": 1.0}
    yield TestClient(create_app(engine, name="tiny", defaults=defaults))
    engine.close()


def answered(client: TestClient, chat: bool, **body: Any) -> Any:
    if chat:
        body = {"messages": [{"role": "user", "content": "Compute: 60/5"}], "logprobs": True} | body
    else:
        body = {"prompt": "Compute: 60/5", "logprobs": 0} | body
    answer = client.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def merged(client: TestClient, chat: bool, **body: Any) -> dict[int, Any]:
    """Text and log-probabilities of each choice of a stream."""
    found: dict[int, Any] = {}
    data = answered(client, chat, stream=True, **body).text.split("\n\n")
    for event in (json.loads(each.removeprefix("data: ")) for each in data[:-2]):
        (choice,) = event["choices"]
        text = choice["delta"].get("content", "") if chat else choice["text"]
        one = found.setdefault(choice["index"], {"text": "", "tokens": []})
        one["text"] += text
        got = choice["logprobs"]
        if choice["finish_reason"] is not None:
            one["end"] = choice["finish_reason"]
            assert got is None
            continue
        one["tokens"] += got["content"] if chat else [*zip(*columns(got), strict=True)]
    return found


def columns(logprobs: Any) -> list[list[Any]]:
    alternatives = logprobs["top_logprobs"] or [None] * len(logprobs["tokens"])
    return [logprobs["tokens"], logprobs["token_logprobs"], alternatives, logprobs["text_offset"]]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("chat", "options"),
    [
        (True, {}), (True, {"stop_at_eos": False}), (True, {"decoder": "saber"}),
        (True, {"decoder": "block_refinement", "stop": "2"}), (False, {"stop": ["1", "4"]}),
        (False, {"decoder": "wino"}), (False, {"decoder": "left_to_right"}),
        (False, {"decoder": "saber", "stop": "4", "stop_at_eos": False}),
    ],
    ids=str,
)  # fmt: skip
def test_answers_have_those_of_generate(
    served: TestClient, tiny: Model, chat: bool, options: dict[str, Any]
) -> None:
    """As a whole and in a stream, each token once and in order."""
    choices = answered(served, chat, n=3, **options).json()["choices"]
    prompt: Any = [{"role": "user", "content": "Compute: 60/5"}] if chat else "Compute: 60/5"
    asked = {key: value for key, value in options.items() if key != "stop"}
    usual: dict[str, Any] = {"gen_length": 12, "block_length": 6, "seed": 3, "temperature": 1.0}
    out = dlm.generate(tiny, [prompt] * 3, return_trajectory=True, **usual, **asked)
    assert out.log_probabilities is not None
    assert out.texts is not None
    streams = merged(served, chat, n=3, **options)
    cut = 0
    for index, choice in enumerate(choices):
        text = choice["message"]["content"] if chat else choice["text"]
        got = choice["logprobs"]
        listed: list[Any] = got["content"] if chat else [*zip(*columns(got), strict=True)]
        cut += len(text) < len(out.texts[index])
        values = [each["logprob"] for each in listed] if chat else got["token_logprobs"]
        assert values == pytest.approx(out.log_probabilities[index][: len(listed)], rel=1e-4)
        # As many as the text needs: it ends in the last of them, or at its end.
        assert whole_text(tiny, out.tokens[index][: len(listed)]).startswith(text)
        assert not listed or len(whole_text(tiny, out.tokens[index][: len(listed) - 1])) < len(text)
        if chat:
            data = b"".join(bytes(each["bytes"]) for each in listed)
            assert data.decode(errors="replace").startswith(text)
        assert streams[index]["text"] == text
        assert streams[index]["tokens"] == listed
        assert streams[index]["end"] == choice["finish_reason"]
    assert bool(cut) == ("stop" in options)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_filled_in_between_has_them_too(
    served: TestClient, tiny: Model, stream: bool
) -> None:
    if stream:
        one = merged(served, False, suffix="=4", max_tokens=5)[0]
        text, names = one["text"], [each[0] for each in one["tokens"]]
    else:
        (choice,) = answered(served, False, suffix="=4", max_tokens=5).json()["choices"]
        text, names = choice["text"], choice["logprobs"]["tokens"]
        assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])
    tokenizer: Any = tiny.tokenizer
    assert len(names) == 5
    assert "".join(name for name in names if name not in tokenizer.get_added_vocab()) == text


def script(text: str, *more: int) -> Callable[[Request], Iterator[Event]]:
    """Tells the tokens of a text one by one, the n-th with -n."""

    def play(request: Request) -> Iterator[Event]:
        assert request.log_probabilities
        row = [*CASES.ids(text), *more]
        if request.follow:
            for at in range(len(row)):
                yield Grown(0, row[at : at + 1], [-float(at)])
        yield Ended(0, row, decoded=9, forwards=9, log_probabilities=[-float(n) for n in range(9)])

    return play


@pytest.mark.parametrize("stream", [False, True])
def test_parts_of_a_character_have_their_bytes(serve: Serve, stream: bool) -> None:
    server = serve(script("1\u00e92"))
    messages = [{"role": "user", "content": "a"}]
    ask: Any = {"path": "chat/completions", "messages": messages, "logprobs": True}
    if stream:
        events = server.events(**ask)[:-2]
        deltas = [
            (event["choices"][0]["delta"]["content"], event["choices"][0]["logprobs"]["content"])
            for event in events
        ]
        assert [(text, len(tokens)) for text, tokens in deltas] == [
            ("1", 1),
            ("\u00e9", 2),
            ("2", 1),
        ]
        content = [one for _, tokens in deltas for one in tokens]
    else:
        logprobs = server.ask(**ask).json()["choices"][0]["logprobs"]
        assert logprobs["refusal"] is None
        content = logprobs["content"]
    assert content == [
        {"token": token, "logprob": value, "bytes": data, "top_logprobs": []}
        for token, value, data in [
            ("1", 0.0, [0x31]), ("\\xc3", -1.0, [0xC3]), ("\\xa9", -2.0, [0xA9]),
            ("2", -3.0, [0x32]),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("asked", "listed"), [(0, False), (2, True)])
def test_the_older_form_has_columns(serve: Serve, asked: int, listed: bool, stream: bool) -> None:
    server = serve(script("\u00e92;3", CASES.EOS, *CASES.ids("4")))
    names, values, offsets = ["bytes:\\xc3", "bytes:\\xa9", "2"], [0.0, -1.0, -2.0], [0, 0, 1]
    if stream:
        events = server.events(logprobs=asked, stop=[";3"])[:-2]
        parts = [event["choices"][0] for event in events]
        found = [row for part in parts for row in zip(*columns(part["logprobs"]), strict=True)]
    else:
        (choice,) = server.ask(logprobs=asked, stop=[";3"]).json()["choices"]
        assert choice["text"] == "\u00e92"
        assert (choice["logprobs"]["top_logprobs"] is None) == (not listed)
        found = [*zip(*columns(choice["logprobs"]), strict=True)]
    rows = zip(names, values, offsets, strict=True)
    assert found == [(n, v, {n: v} if listed else None, at) for n, v, at in rows]


def test_the_stop_token_is_not_listed(serve: Serve) -> None:
    (choice,) = serve(script("12", CASES.EOS)).ask(logprobs=0).json()["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("12", ["1", "2"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_special_token_at_the_end_is_listed(serve: Serve, stream: bool) -> None:
    """Though no text comes with it."""
    server = serve(script("1", 0))
    ask: Any = {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
    if stream:
        events = server.events("chat/completions", **ask)[:-2]
        content = [one for e in events for one in e["choices"][0]["logprobs"]["content"]]
    else:
        (choice,) = server.ask("chat/completions", **ask).json()["choices"]
        assert choice["message"]["content"] == "1"
        content = choice["logprobs"]["content"]
    found = [(one["token"], one["bytes"], one["logprob"]) for one in content]
    assert found == [("1", [0x31], 0.0), ("<|startoftext|>", None, -1.0)]


def test_who_asks_for_none_gets_null(serve: Serve) -> None:
    server = serve(CASES.letters(["12"]))
    assert server.ask(logprobs=None).json()["choices"][0]["logprobs"] is None
    events = server.events(logprobs=False)[:-1]
    assert [event["choices"][0]["logprobs"] for event in events] == [None] * len(events)


def test_what_no_number_of_json_is_has_another(serve: Serve) -> None:
    def play(request: Request) -> Iterator[Event]:
        yield Ended(0, CASES.ids("12"), 2, 2, [-math.inf, math.nan])

    (choice,) = serve(play).ask(logprobs=1).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0, None]
