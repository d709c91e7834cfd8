"""What a server tells Prometheus, how requests are told apart, and which pages may ask."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.serving.metrics import BOUNDS, Times

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))

Serve = Callable[..., Any]


def metrics(server: Any) -> dict[str, float]:
    """Every sample that a server tells, by name and labels."""
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("\n")
    lines = answer.text.splitlines()
    told = [line.split(" ", 3) for line in lines if line.startswith("#")]
    assert [line[1] for line in told] == ["HELP", "TYPE"] * (len(told) // 2)
    assert [line[2] for line in told[::2]] == [line[2] for line in told[1::2]]
    samples = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    assert len({name for name, _ in samples}) == len(samples)
    return {name: float(value) for name, value in samples}


def test_what_was_asked_is_counted(serve: Serve) -> None:
    server = serve(CASES.letters(["12"]))
    before = metrics(server)
    assert (before["dlm_engine_running"], before["dlm_rows_decoding"]) == (1, 2)
    assert (before["dlm_rows_waiting"], before["dlm_forwards_total"]) == (3, 0)
    for _ in range(2):
        assert server.ask().status_code == 200
    server.events("chat/completions", messages=[{"role": "user", "content": "a"}])
    assert server.ask(n=0).status_code == 400
    assert server.client.get("/v1/models").status_code == 200
    server.engine.running = False
    after, told = metrics(server), server.served
    firsts = [one.first_seconds for one in told]
    assert firsts[:2] == [None, None]  # of no streams
    assert firsts[3] is None  # of a refusal
    assert 0 < firsts[2] < told[2].seconds
    assert after["dlm_engine_running"] == 0
    asked = {name: value for name, value in after.items() if "requests_total" in name}
    assert asked == {
        'dlm_requests_total{endpoint="/v1/chat/completions",status="200"}': 1,
        'dlm_requests_total{endpoint="/v1/completions",status="200"}': 2,
        'dlm_requests_total{endpoint="/v1/completions",status="400"}': 1,
    }
    first = 'dlm_first_text_seconds_sum{endpoint="/v1/chat/completions"}'
    assert after[first] == pytest.approx(firsts[2])
    assert after["dlm_prompt_tokens_total"] == sum(one.prompt_tokens for one in told)
    assert after["dlm_completion_tokens_total"] == 9
    assert after["dlm_forwards_total"] == 30
    label = 'endpoint="/v1/completions"'
    assert after[f"dlm_request_seconds_count{{{label}}}"] == 3
    assert after[f'dlm_request_seconds_bucket{{{label},le="+Inf"}}'] == 3
    seconds = sum(one.seconds for one in told if one.endpoint == "/v1/completions")
    assert after[f"dlm_request_seconds_sum{{{label}}}"] == pytest.approx(seconds)


def test_buckets_hold_those_before() -> None:
    times = Times()
    for seconds in (0.05, 0.1, 0.2, 0.25, 9.0, 1e6):
        times.add(seconds)
    found = [count for name, count in times.samples("a") if name.startswith("_bucket")]
    assert found == [2, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6]
    assert len(found) == len(BOUNDS) + 1
    (total,) = [value for name, value in times.samples("a") if name.startswith("_sum")]
    assert total == pytest.approx(1e6 + 9.6)


def test_metrics_are_for_who_has_the_key(serve: Serve) -> None:
    server = serve(CASES.nothing, api_key="a secret")
    assert server.client.get("/metrics").status_code == 401
    key = {"authorization": "Bearer a secret"}
    assert server.client.get("/metrics", headers=key).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_requests_have_names(serve: Serve, stream: bool) -> None:
    server = serve(CASES.letters([""]))
    body = {"prompt": "a", "stream": stream}
    given = ["one-2.3:4/5+6=", "a" * 128, "", "a b", "a" * 129, "a\x7f", "\u00e9"]
    for name in given:
        headers = {b"x-request-id": name.encode()}
        answer = server.client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
    names = [told.request_id for told in server.served]
    assert names[:2] == given[:2]
    assert all(len(name) == 32 for name in names[2:])
    assert len({*names}) == len(given)
    assert answer.headers["x-request-id"] == names[-1]


def test_whatever_is_answered_has_the_name(serve: Serve) -> None:
    server = serve(CASES.nothing, api_key="a secret")
    client, key = server.client, {"authorization": "Bearer a secret", "x-request-id": "mine"}
    for path, headers, status in [
        ("/health", {"x-request-id": "mine"}, 200), ("/v1/models", {"x-request-id": "mine"}, 401),
        ("/nothing", key, 404), ("/v1/completions", key, 405), ("/metrics", key, 200),
    ]:  # fmt: skip
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")
    answer = client.post("/v1/completions", content=b"{", headers=key)
    assert (answer.status_code, answer.headers["x-request-id"]) == (400, "mine")
    assert [told.request_id for told in server.served] == ["mine"]


@pytest.mark.parametrize("key", [None, "a secret"])
def test_pages_of_other_origins_may_ask_where_that_is_said(serve: Serve, key: str | None) -> None:
    page, other = "https://page.example", "https://other.example"
    client = serve(CASES.letters([""]), api_key=key, cors_origins=[page]).client
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for origin, allowed in ((page, page), (other, None)):
        before = client.options("/v1/chat/completions", headers={"origin": origin, **asks})
        assert (before.status_code == 200) == (allowed is not None)
        assert before.headers.get("access-control-allow-origin") == allowed
        headers = {"origin": origin, "authorization": f"Bearer {key}"}
        answer = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == allowed
    refused = client.get("/v1/nothing", headers={"origin": page})
    assert refused.status_code == (404 if key is None else 401)
    assert refused.headers["access-control-allow-origin"] == page
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_no_page_may_read_where_nothing_is_said(serve: Serve) -> None:
    client = serve(CASES.nothing).client
    answer = client.get("/v1/models", headers={"origin": "https://page.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.options("/v1/models").status_code == 405
