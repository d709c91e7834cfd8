"""What requests leave to those that begin alike, and what their answers tell of it."""

import runpy
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.cli import serve as command
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.work import Event, Request, Reused

HERE = Path(__file__).parent
CASES = SimpleNamespace(**runpy.run_path(str(HERE / "serving_cases.py")))
Client = SimpleNamespace(**runpy.run_path(str(HERE / "engine_cases.py"))).Client

TALK = [*range(1, 101)]
OPTIONS: dict[str, Any] = {"gen_length": 12, "block_length": 4, "seed": 7, "stop_at_eos": False}


@pytest.fixture
def model(golden: Model) -> Model:
    """With attention in blocks."""
    return replace(golden, spec=replace(golden.spec, block_size=8))


def test_requests_take_over_what_others_left(model: Model) -> None:
    engine = Engine(model, prompt_cache=dlm.PromptCache(model, gib=0.01))
    try:
        first = Client(model, [TALK[:70]], cache="prefix", **OPTIONS).ask(engine).wait()
        first.check()
        assert first.reused == {}
        row = [*TALK[:70], *first.ends[0].tokens]  # its last block begins at 80 of 82
        later = Client(model, [row, TALK[:40], [9]], cache="prefix", follow=True, **OPTIONS)
        later.ask(engine).check()
        assert later.reused == {0: 64, 1: 32}
        for options in ({"cache": "none"}, {"cache": "dual", "cfg_scale": 1.0}):
            other = Client(model, [TALK[:70]], **OPTIONS, **options).ask(engine)
            other.check()
            assert other.reused == {}
    finally:
        engine.close()


def test_a_row_given_up_alone_leaves_what_it_has(model: Model) -> None:
    """As one does whose stop text has come."""
    engine = Engine(model, prompt_cache=dlm.PromptCache(model, gib=0.01))
    options = OPTIONS | {"gen_length": 100, "cache": "prefix"}
    try:
        first = Client(model, [TALK[:40]], follow=True, **options)

        def hear() -> None:
            if len(first.grown[0]) > 60:
                engine.cancel(first.ticket)

        first.heard = hear
        first.ask(engine)
        row = [*TALK[:40], *dlm.generate(model, first.prompts, **first.options).tokens[0]]
        while sum(engine.load()):
            time.sleep(0.01)
        assert not first.ends
        later = Client(model, [row], **OPTIONS, cache="prefix").ask(engine)
        later.check()
        assert later.reused == {0: 96}
    finally:
        engine.close()


def test_rows_leave_what_they_have_when_the_engine_ends(model: Model) -> None:
    kept = dlm.PromptCache(model, gib=0.01)
    engine = Engine(model, prompt_cache=kept)
    first = Client(
        model, [TALK[:40]], follow=True, **OPTIONS | {"gen_length": 100, "cache": "dual"}
    )
    closing = threading.Event()

    def hear() -> None:
        if len(first.grown[0]) > 60:
            closing.set()

    first.heard = hear
    first.ask(engine)
    assert closing.wait(60)
    engine.close()
    assert kept.tokens >= 96  # whole pages


def test_a_prompt_cache_is_of_the_model_that_is_served(golden: Model, model: Model) -> None:
    other = replace(model, network=dlm.load(None).network)
    with pytest.raises(ValueError, match="prompt_cache must be one of this model"):
        Engine(golden, prompt_cache=dlm.PromptCache(other))
    with pytest.raises(ValueError, match=r"prompt_cache must be a dlm\.PromptCache, got True"):
        Engine(golden, prompt_cache=True)  # type: ignore[arg-type]


def test_an_answer_tells_what_was_taken_over() -> None:
    """Of a prompt what none of its choices had to compute."""

    def script(request: Request) -> Iterator[Event]:
        yield Reused(0, 3)
        yield Reused(1, 2)
        yield Reused(3, 4)
        yield from CASES.letters(["1"] * 4)(request)

    with CASES.servers() as serve:
        server = serve(script)
        body = server.ask(prompt=["1+1=", "2+2="], n=2).json()
        details = {"prompt_tokens_details": {"cached_tokens": 2}}
        counts = {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}
        assert body["usage"] == counts | details
        streamed = server.events(
            prompt=["1+1=", "2+2="], n=2, stream_options={"include_usage": True}
        )
        assert streamed[-2]["usage"] == counts | details
        assert [one.cached_tokens for one in server.served] == [2, 2]
        assert "dlm_cached_tokens_total 4\n" in server.client.get("/metrics").text
        line = command.line_of(server.served[0])
        assert "4 of 8 tokens, 2 of them kept, 8 decoded" in line


def test_a_server_keeps_prompts_where_the_family_allows_it(golden: Model, model: Model) -> None:
    assert command.make_prompt_cache(golden, None) is None
    assert command.make_prompt_cache(model, 0) is None
    kept = command.make_prompt_cache(model, None)
    assert kept is not None
    assert kept.bytes == 1 << 30
    found = command.make_prompt_cache(model, 0.5)
    assert found is not None
    assert found.bytes == 1 << 29
    with pytest.raises(ValueError, match="prompt_cache must be None for llada"):
        command.make_prompt_cache(golden, 1.0)
