"""`dlm serve`: a process of its own, asked over a socket."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli import serve as command
from dlm.serving import front
from dlm.serving.app import Served, create_app
from dlm.serving.engine import Engine

PATIENCE = 120  # seconds
KEY = "open sesame"
PUZZLES = ["3102200002100320", "0413314202041300", "0042420000040320"]


@dataclass
class Server:
    """One that listens."""

    url: str
    process: subprocess.Popen[str] | None = None
    told: str = ""  # on stdout, behind its first line

    def open(self, path: str, body: Any, key: str = KEY) -> Any:
        request = Request(self.url + path, json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {key}")
        return urlopen(request, timeout=PATIENCE)

    def ask(self, path: str, body: Any) -> Any:
        with self.open(path, body) as answer:
            return json.load(answer)

    def refused(self, path: str, body: Any, key: str = KEY) -> tuple[int, str]:
        with pytest.raises(HTTPError) as caught:
            self.open(path, body, key)
        return caught.value.code, json.load(caught.value)["error"]["message"]

    def pieces(self, path: str, body: Any) -> list[Any]:
        with self.open(path, {**body, "stream": True}) as answer:
            lines = [line.decode().strip() for line in answer if line.strip()]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Such a server, ended by SIGTERM."""
    given = [sys.executable, "-m", "dlm", "serve", "--port=0", *options]
    process = subprocess.Popen(
        given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DLM_API_KEY": KEY},
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if not first:
        raise AssertionError(process.communicate()[1])
    server = Server(json.loads(first)["url"], process)
    try:
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        server.told, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


def chat(puzzle: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Sudoku: {puzzle}"}]
    return {"messages": messages, "max_tokens": 20, **more}


def test_many_ask_at_once_and_get_what_generate_gives() -> None:
    """Answers, streams, completions and refusals of two copies; a line of JSON for each."""
    options: list[dict[str, Any]] = [{}, {"decoder": "threshold"}, {"temperature": 0.7, "seed": 4}]
    bodies = [chat(puzzle, n=2, **more) for puzzle in PUZZLES for more in options]
    copies = ("--data-parallel-size=2", "--batch-size=2")
    with serving("--json", *copies, "--cache=dual", "--name=tiny") as server:
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: server.ask("/chat/completions", body), bodies))
        pieces = server.pieces("/chat/completions", chat(PUZZLES[0], **options[2]))
        plain = server.ask("/completions", {"prompt": ["Sudoku: ", "Compute: "], "stop": "3"})
        status, message = server.refused("/chat/completions", chat("0", temprature=1))
        assert server.refused("/chat/completions", chat("0"), "sesame")[0] == 401
        assert server.ask("/chat/completions", chat(PUZZLES[0], model="tiny"))["model"] == "tiny"
    assert (status, message[:42]) == (400, "unknown field 'temprature'. Did you mean '")
    model = dlm.load()
    for body, answer in zip(bodies, answers, strict=True):
        asked = {key: body[key] for key in ("decoder", "temperature", "seed") if key in body}
        expected = dlm.generate(model, [body["messages"]] * 2, gen_length=20, cache="dual", **asked)
        assert expected.texts == [one["message"]["content"] for one in answer["choices"]]
        assert expected.forwards == [one["forwards"] for one in answer["choices"]]
    said = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    assert said == answers[2]["choices"][0]["message"]["content"]
    assert len(pieces) > 3
    assert "3" not in "".join(one["text"] for one in plain["choices"])
    lines = [json.loads(line) for line in server.told.splitlines()]
    assert [line["status"] for line in lines[-3:]] == [200, 400, 200]
    assert len(lines) == len(bodies) + 4
    assert sum(line["forwards"] for line in lines[: len(bodies)]) == sum(
        one["forwards"] for answer in answers for one in answer["choices"]
    )


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["serve", *args], prog_name="dlm")


@pytest.mark.parametrize(("given", "message"), [
    (["--port=65536"], "--port must be an int in [0, 65535], got 65536"),
    (["--host=999.1.1.1"], "--host must be an address or its name, got '999.1.1.1': "),
    (["--decoder=treshold"], "unknown decoder 'treshold'. Did you mean 'threshold'"),
    (["--cache=duel"], "unknown cache 'duel'. Did you mean 'dual'"),
    (["--option", "radius=1"], "low_confidence"),
    (["--batch-size=0"], "must be an int >= 1, got '0'"),
    (["--host=no.such.host.invalid"], "error: "),
    (["--host="], "--host must not be empty: 0.0.0.0 stands for all addresses"),
    (["--api-key="], "--api-key must be printable ASCII, with no space around it"),
    (["--cors-origin=example.org"], "--cors-origin must be a scheme, a host and maybe a port"),
    (["--cors-origin=https://example.org/"], "got 'https://example.org/'"),
    (["--data-parallel-size=0"], "must be an int >= 1, got '0'"),
    (["--data-parallel-size=2", "--device=cuda:1"], "takes GPUs 0 to 1: give --device cuda"),
    (["--data-parallel-size=2", "--device-map=auto"], "a GPU of its own: give one of the two"),
    (["--data-parallel-size=2", "--tensor-parallel-size=2"], "--tensor-parallel-size spreads one"),
    (["--data-parallel-size=99", "--device=cuda"], "got 99 where there are"),
    (["--api-key=key "], "--api-key must be printable ASCII, with no space around it"),
], ids=str)  # fmt: skip
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(command, "load_model", load)
    result = run(*given)
    assert result.exit_code == 2
    assert message in result.output


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(f"--port={taken.getsockname()[1]}")
    assert result.exit_code == 2
    assert "address already in use" in result.output.lower()


def test_without_the_extra_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = run()
    assert result.exit_code == 2
    assert 'dlm serve needs starlette and uvicorn: pip install -e ".[serve]"' in result.output


def test_a_key_that_was_meant_to_be_there_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_API_KEY", "")
    result = run()
    assert result.exit_code == 2
    assert "DLM_API_KEY must not be empty" in result.output


def served(**more: Any) -> Served:
    usual: dict[str, Any] = {"endpoint": "/v1/completions", "status": 200, "seconds": 0.25}
    usual |= {
        "choices": 2,
        "prompt_tokens": 7,
        "cached_tokens": 0,
        "completion_tokens": 9,
        "forwards": 4,
    }
    return Served(**{**usual, "error": None, "request_id": "a-b", **more})


def test_people_read_where_it_is_and_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for host, guarded in (("127.0.0.1", False), ("0.0.0.0", True), ("0.0.0.0", False)):
        with socket.create_server((host, 0)) as listener:
            command.announce(listener, "a model", 3, guarded=guarded, machine=False)
            port = listener.getsockname()[1]
        out, told = capsys.readouterr()
        assert out == ""
        assert f"a model at http://{host}:{port}/v1, 3 rows at a time" in told
        assert ("Whoever reaches" in told) == (host == "0.0.0.0" and not guarded)
    command.tell(served(), machine=False)
    told = capsys.readouterr().err
    assert told == "/v1/completions 200: 2 of 7 tokens, 9 decoded in 4 forwards, 0.25 s, a-b\n"
    command.tell(served(forwards=None), machine=False)
    told = capsys.readouterr().err
    assert told == "/v1/completions 200: 2 of 7 tokens, 9 decoded, 0.25 s, a-b\n"
    command.tell(served(error="it\nis \x1b[31mlate"), machine=False)
    assert capsys.readouterr().err == "/v1/completions 200: it is  [31mlate, 0.25 s, a-b\n"


@pytest.mark.parametrize("machine", [True, False])
def test_nobody_has_to_read_the_lines(monkeypatch: pytest.MonkeyPatch, machine: bool) -> None:
    def closed(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(command, "print_json", closed)
    monkeypatch.setattr(command, "note", closed)
    command.tell(served(), machine=machine)


def test_a_pipe_that_nobody_reads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `dlm serve 2>&1 | head -2`."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    command.tell(served(), machine=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command.announce(listener, "a model", 3, guarded=True, machine=False)


def test_answers_that_take_too_long_end_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stops the engine after the time of grace, and who waits is told."""
    monkeypatch.setattr(front, "GRACE", 0.2)
    model = dlm.load()
    begun = threading.Event()
    states = type(model.network).states

    def slow(network: Any, *given: Any, **more: Any) -> Any:
        begun.set()
        time.sleep(0.05)
        return states(network, *given, **more)

    monkeypatch.setattr(type(model.network), "states", slow)
    engine = Engine(model)
    lines: list[Served] = []
    app = create_app(engine, name="tiny", defaults={"gen_length": 400}, served=lines.append)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        body = {"prompt": "1+1", "stop_at_eos": False}
        asked = pool.submit(Server(url).refused, "/completions", body)

        def interrupt() -> None:
            assert begun.wait(PATIENCE)
            os.kill(os.getpid(), signal.SIGINT)

        pool.submit(interrupt)
        front.run_until_signal(app, engine, listener)
        assert asked.result()[0] == 503
    engine.close()
    assert [line.status for line in lines] == [503]
