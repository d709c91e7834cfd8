"""Requests that cannot be answered, and engines that end."""

import runpy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm.host import check
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.group import Group

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "engine_cases.py")))
Client, PATIENCE = CASES.Client, CASES.PATIENCE


@pytest.fixture
def engine(gated_model: Model, gated: Any) -> Iterator[Engine]:
    made = Engine(gated_model, batch_size=4)
    yield made
    gated.gate.set()
    made.close()


def test_a_request_that_is_wrong_fails_alone(golden: Model, gated: Any, engine: Engine) -> None:
    """Also what only shows when it is laid out."""
    gated.gate.set()
    wrong = Client(golden, [[1], [2]])
    rows = [[*row, *[golden.spec.mask_id] * 300] for row in wrong.request.rows]
    wrong.request = replace(wrong.request, rows=rows)
    right = Client(golden, [[3]])
    wrong.ask(engine)
    right.ask(engine)
    assert isinstance(wrong.wait().error, ValueError)
    assert "must fit the model's 256 positions" in str(wrong.error)
    right.check()
    assert engine.load() == (0, 0)


def test_a_forward_that_fails_takes_its_rows_along(
    golden: Model, gated: Any, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing else: the engine goes on. Who asked is not to blame, and keeps no frame alive."""
    with engine.news:
        asked = [
            Client(golden, [[1], [2]]).ask(engine),
            Client(golden, [[3], [4], [5]]).ask(engine),
        ]
    assert gated.reached.wait(PATIENCE)
    gated.error = ValueError("out of order")
    gated.gate.set()
    for client in asked:
        assert str(client.wait().error) == "ValueError: out of order"
        assert isinstance(client.error, RuntimeError)
        assert client.error.__traceback__ is None
        assert client.error.__context__ is None
    assert caplog.messages == ["a forward failed"]
    gated.error = None
    Client(golden, [[6]]).ask(engine).check()
    assert engine.running


@pytest.mark.parametrize("gen_length", [1, 10])
def test_a_request_fails_once_wherever_its_rows_are(
    golden: Model, gated: Any, gen_length: int
) -> None:
    """Decoders that reach back are decoded with rows of the same span alone."""
    model = replace(golden, network=gated, spec=replace(golden.spec, block_size=8))
    engine = Engine(model, batch_size=4)
    prompts = [[7] * 8, [7] * 11]
    two = Client(golden, prompts, decoder="saber", gen_length=gen_length, block_length=8)
    two.ask(engine)
    gated.error = RuntimeError("out of order")
    gated.gate.set()
    assert "out of order" in str(two.wait().error)
    gated.error = None
    Client(golden, [[6]]).ask(engine).wait()
    engine.close()
    assert not two.wrongs  # nothing was told after it
    assert not two.ends


def test_all_are_told_when_the_engine_breaks_down(
    golden: Model, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the device is so far gone that nothing can be closed."""

    class Broken(BaseException):
        pass

    def refuse(group: Group) -> None:
        raise Broken

    deaths: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: deaths.append(args.exc_type))
    monkeypatch.setattr(Group, "close", lambda group: (_ for _ in ()).throw(RuntimeError("no")))
    monkeypatch.setattr(Group, "advance", refuse)
    engine = Engine(replace(golden, network=gated), batch_size=1)
    with engine.news:
        clients = [Client(golden, [[n]], temperature=n).ask(engine) for n in (1, 2)]
    for client in clients:
        assert "the engine broke down: Broken()" in str(client.wait().error)
    engine.close()
    assert deaths == [Broken]
    assert not engine.running


@pytest.mark.parametrize("when", ["advance", "place"])
def test_an_engine_ends_with_its_device(
    golden: Model, gated: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A GPU fails at all that is asked after some errors: who supervises has to hear of it."""
    asked: list[torch.device] = []
    deaths: list[Any] = []

    def dead(device: torch.device) -> None:
        asked.append(device)
        raise RuntimeError("an illegal memory access")

    def fail(*_: Any) -> None:
        raise RuntimeError("misaligned address")

    monkeypatch.setattr(threading, "excepthook", lambda args: deaths.append(str(args.exc_value)))
    monkeypatch.setattr("dlm.serving.engine.check", dead)
    monkeypatch.setattr(Group if when == "advance" else Engine, when, fail)
    engine = Engine(replace(golden, network=gated), batch_size=1)
    with engine.news:
        one, other = [Client(golden, [[n]]).ask(engine) for n in (1, 2)]
    assert "misaligned address" in str(one.wait().error)
    assert "broke down: RuntimeError('an illegal memory access')" in str(other.wait().error)
    engine.close()
    assert deaths == ["an illegal memory access"]
    assert asked == [golden.device]


def test_a_gpu_is_asked_whether_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    for name in ("cpu", "cuda:1"):
        check(torch.device(name))
    assert asked == [torch.device("cuda:1")]


def test_who_does_not_listen_is_given_up(golden: Model, gated: Any, engine: Engine) -> None:
    deaf = Client(golden, [[1]], follow=True, gen_length=40)

    def refuse() -> None:
        raise RuntimeError("the event loop is closed")

    deaf.heard = refuse
    deaf.ask(engine)
    gated.gate.set()
    Client(golden, [[2]], gen_length=40).ask(engine).check()
    assert not deaf.over.is_set()
    assert engine.load() == (0, 0)


def test_closing_fails_what_is_left(golden: Model, gated: Any, gated_model: Model) -> None:
    engine = Engine(gated_model, batch_size=1)
    begun = Client(golden, [[1], [2]], gen_length=40).ask(engine)
    waits = Client(golden, [[3]], gen_length=40).ask(engine)
    assert gated.reached.wait(PATIENCE)
    engine.stop()
    gated.gate.set()
    engine.close()
    for client in (begun, waits):
        assert str(client.wait().error) == "the engine is closed"
    assert not engine.running
    with pytest.raises(RuntimeError, match="the engine is closed"):
        begun.ask(engine)
