"""Several engines answer as one does, and share what is asked of them."""

import runpy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import dlm
from dlm.cli.loading import devices_of
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.replicas import Replicas
from dlm.serving.work import Busy, Event, Request
from dlm.settings import Settings

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "engine_cases.py")))
Client, Gated, PATIENCE = CASES.Client, CASES.Gated, CASES.PATIENCE
BLOCKS = Path(__file__).parent.parent / "golden" / "families" / "sdar"


@pytest.fixture
def gates(golden: Model) -> list[Any]:
    return [Gated(golden.network) for _ in range(3)]


@pytest.fixture
def replicas(golden: Model, gates: list[Any]) -> Iterator[Replicas]:
    """Three engines, of which each waits for its gate."""
    models = [replace(golden, network=gate) for gate in gates]
    made = Replicas([Engine(model, batch_size=2, queue_size=3) for model in models])
    yield made
    for gate in gates:
        gate.gate.set()
    made.close()
    assert not made.running


def rows_of(replicas: Replicas) -> list[int]:
    """Rows that each engine has."""
    return [sum(engine.load()) for engine in replicas.engines]


def test_requests_go_where_the_fewest_rows_are(
    golden: Model, gates: list[Any], replicas: Replicas
) -> None:
    clients, seen = [], []
    for prompts in ([[1], [2]], [[3]], [[4]], [[5]], [[6], [7]], [[8]]):
        clients.append(Client(golden, prompts).ask(replicas))
        seen.append(rows_of(replicas))
    assert seen == [[2, 0, 0], [2, 1, 0], [2, 1, 1], [2, 2, 1], [2, 2, 3], [3, 2, 3]]
    assert replicas.load()[0] + replicas.load()[1] == 8
    assert (replicas.batch_size, replicas.alive) == (6, 3)
    for gate in gates:
        gate.gate.set()
    for client in clients:
        client.check()
    assert replicas.load() == (0, 0)


def test_one_that_is_full_is_passed_over(golden: Model, gates: list[Any]) -> None:
    """The first has fewer rows, and no room for three more."""
    small, large = (replace(golden, network=gate) for gate in gates[:2])
    both = Replicas([Engine(small, batch_size=2, queue_size=3), Engine(large, queue_size=8)])
    rows = [[1], [2], [3]]
    try:
        clients = [Client(golden, some).ask(both) for some in (rows, [*rows, [4]], rows)]
        assert [client.ticket % 2 for client in clients] == [0, 1, 1]
        assert rows_of(both) == [3, 7]
        with pytest.raises(ValueError, match="must hold at most 3 rows, got 9"):
            Client(golden, rows * 3).ask(both)
    finally:
        for gate in gates:
            gate.gate.set()
        both.close()


def test_where_all_are_full_one_has_to_come_again(golden: Model, replicas: Replicas) -> None:
    rows = [[1], [2], [3]]
    assert {Client(golden, rows).ask(replicas).ticket % 3 for _ in range(3)} == {0, 1, 2}
    with pytest.raises(Busy, match="ask again later"):
        Client(golden, rows).ask(replicas)


def test_what_is_given_up_is_that_of_its_engine(
    golden: Model, gates: list[Any], replicas: Replicas
) -> None:
    first, second, third = (Client(golden, [[n]]).ask(replicas) for n in (1, 2, 3))
    assert len({client.ticket % 3 for client in (first, second, third)}) == 3
    replicas.cancel(second.ticket, 0)
    for gate in gates:
        gate.gate.set()
    for client in (first, third):
        client.check()
    assert not second.ends


def test_the_others_answer_on_where_one_has_ended(
    golden: Model, gates: list[Any], replicas: Replicas
) -> None:
    gates[0].gate.set()
    replicas.engines[0].close()
    assert (replicas.running, replicas.alive) == (True, 2)
    clients = [Client(golden, [[n]]).ask(replicas) for n in (1, 2)]
    assert rows_of(replicas) == [0, 1, 1]
    for gate in gates:
        gate.gate.set()
    for client in clients:
        client.check()
    replicas.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        Client(golden, [[1]]).ask(replicas)


def test_a_prompt_goes_where_its_beginning_is_kept() -> None:
    """Of engines that have as few rows."""
    models = [dlm.load(BLOCKS, dtype="float32") for _ in range(2)]
    caches = [dlm.PromptCache(model, gib=0.01) for model in models]
    both = Replicas([
        Engine(model, prompt_cache=kept) for model, kept in zip(models, caches, strict=True)
    ])  # fmt: skip
    prompt = list(range(5, 8)) * 30
    try:
        dlm.generate(models[1], prompt, gen_length=8, cache="prefix", prompt_cache=caches[1])
        known = [engine.kept(prompt) for engine in both.engines]
        assert known[0] == 0 < known[1] <= len(prompt)
        client = Client(models[0], [prompt], cache="prefix", block_length=None)
        client.ask(both)
        client.check()
        assert client.ticket % 2 == 1
        assert client.reused == {0: known[1]}
        assert Client(models[0], [[7] * 90]).ask(both).wait().ticket % 2 == 0
    finally:
        both.close()


@dataclass
class Broken:
    """An engine that raises."""

    error: Exception
    running: bool = True
    model: Any = field(default_factory=lambda: SimpleNamespace(network=object()))

    def load(self) -> tuple[int, int]:
        return 0, 0

    def kept(self, prompt: list[int]) -> int:
        return 0

    def submit(self, request: Request, tell: Any) -> int:
        raise self.error


def test_an_error_of_one_that_runs_is_not_hidden() -> None:
    other = Broken(RuntimeError("no room"))
    both = Replicas(cast(Any, [Broken(RuntimeError("lost")), other]))
    request = Request([[5, 0]], [(1, 2)], Settings(gen_length=1))

    def tell(event: Event) -> None:
        raise AssertionError(event)

    with pytest.raises(RuntimeError, match="lost"):
        both.submit(request, tell)


def test_engines_are_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Replicas([])
    engines = [Engine(golden) for _ in range(2)]
    try:
        with pytest.raises(ValueError, match="a network each"):
            Replicas(engines)
    finally:
        for engine in engines:
            engine.close()


def test_copies_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_of("cuda", 3, {}) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of("cuda:3", 1, {"device_map": "auto"}) == ["cuda:3"]
    assert devices_of(None, 2, {"tensor_parallel_size": 1}) == [None, None]
    assert devices_of("cpu", 2, {}) == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="got 5 where there are 4"):
        devices_of("cuda", 5, {})
