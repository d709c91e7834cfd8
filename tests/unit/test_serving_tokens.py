"""What the server tells of tokens, of itself, and whether it is there."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))

Serve = Callable[..., Any]


@pytest.fixture
def client(serve: Serve) -> Any:
    return serve(CASES.nothing).client


def test_texts_and_chats_have_the_tokens_that_they_are_decoded_with(client: Any) -> None:
    model = CASES.tiny()
    for body, prompt in (
        ({"prompt": "1+1="}, "1+1="),
        (
            {"messages": [{"role": "user", "content": "1+1="}]},
            [{"role": "user", "content": "1+1="}],
        ),
    ):
        (ids,) = dlm.encode_prompts(model, prompt)
        answer = client.post("/tokenize", json=body).json()
        expected = {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None}
        assert answer == expected
        told = client.post("/tokenize", json={**body, "return_token_strs": True}).json()
        assert told["token_strs"] == model.tokenizer.convert_ids_to_tokens(ids)
        text = client.post("/detokenize", json={"tokens": ids, "model": "org/tiny"}).json()
        assert text == {"prompt": model.tokenizer.decode(ids)}
    bare = client.post("/tokenize", json={"prompt": "1+1=", "add_special_tokens": False}).json()
    assert bare["tokens"] == CASES.ids("1+1=")


@pytest.mark.parametrize(("path", "body", "status", "message"), [
    ("/tokenize", {}, 400, "prompt must be there"),
    ("/tokenize", {"prompt": ["a", "b"]}, 400, "prompt must be a text, got ['a', 'b']"),
    ("/tokenize", {"prompt": [5]}, 400, "prompt must be a text, got [5]"),
    ("/tokenize", {"prompt": "a", "temperature": 1}, 400, "unknown field 'temperature'"),
    ("/tokenize", {"prompt": "a", "model": "b"}, 404, "model must be 'org/tiny'"),
    ("/tokenize", {"messages": [], "add_special_tokens": True}, 400, "must be False for messages"),
    ("/tokenize", {"messages": []}, 400, "messages must be a list"),
    ("/detokenize", {}, 400, "tokens must be a sequence of ints"),
    ("/detokenize", {"tokens": [768]}, 400, "tokens must be an int <= 767"),
    ("/detokenize", {"tokens": [1], "prompt": ""}, 400, "unknown field 'prompt'"),
], ids=str)  # fmt: skip
def test_what_is_refused(
    client: Any, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_whether_it_is_there_and_which(serve: Serve) -> None:
    server = serve(CASES.nothing, api_key="a secret")
    for ask in (server.client.get, server.client.post):
        assert (ask("/ping").status_code, ask("/ping").content) == (200, b"")
    assert server.client.get("/version").status_code == 401
    key = {"authorization": "Bearer a secret"}
    assert server.client.get("/version", headers=key).json() == {"version": dlm.__version__}
    assert server.client.post("/tokenize", json={"prompt": "a"}).status_code == 401
    server.engine.running = False
    assert server.client.get("/ping").status_code == 503
