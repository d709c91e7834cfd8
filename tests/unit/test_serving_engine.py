"""What is asked of an engine is answered as `dlm.generate` would, whatever else it decodes."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import dlm
from dlm.batch import denoise
from dlm.decoders import DECODERS
from dlm.generation import continued
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.serving.engine import Engine
from dlm.serving.work import Busy, Ended, Event, Failed, Grown, Request
from dlm.settings import Settings

PATIENCE = 60.0  # seconds
USUAL: dict[str, Any] = {"gen_length": 10, "block_length": 4, "temperature": 0.8}


class Client:
    """Asks for rows and keeps what it is told of them."""

    def __init__(
        self, model: Model, prompts: list[list[int]], follow: bool = False, **options: Any
    ):
        self.model = model
        self.prompts = prompts
        self.options = {**USUAL, "row_keys": tuple(range(len(prompts))), **options}
        settings = Settings(**self.options)
        rows, spans = continued(model, prompts, settings.gen_length)
        self.request = Request(rows, spans, settings, follow)
        self.grown: dict[int, list[int]] = {row: [] for row in range(len(rows))}
        self.ends: dict[int, Ended] = {}
        self.error: Exception | None = None
        self.over = threading.Event()
        self.first = threading.Event()
        self.heard: Callable[[], None] = lambda: None

    def tell(self, event: Event) -> None:
        assert self.error is None
        self.first.set()
        if isinstance(event, Grown):
            assert event.row not in self.ends
            assert event.tokens
            self.grown[event.row] += event.tokens
        elif isinstance(event, Ended):
            assert event.row not in self.ends
            self.ends[event.row] = event
        else:
            self.error = event.error
        if isinstance(event, Failed) or len(self.ends) == len(self.prompts):
            self.over.set()
        self.heard()

    def ask(self, engine: Engine) -> "Client":
        self.ticket = engine.submit(self.request, self.tell)
        return self

    def wait(self) -> "Client":
        assert self.over.wait(PATIENCE)
        return self

    def check(self) -> None:
        """All is as it should be."""
        self.wait()
        assert self.error is None
        expected = dlm.generate(self.model, self.prompts, **self.options)
        for row, end in self.ends.items():
            assert end.tokens == expected.tokens[row]
            assert end.forwards == expected.forwards[row]
            assert end.decoded == expected.decoded[row]
            assert end.tokens[: len(self.grown[row])] == self.grown[row]


class Gated:
    """A network whose forwards wait for a gate, and fail on demand."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def states(self, *args: Any, **more: Any) -> Any:
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.network.states(*args, **more)


@pytest.fixture
def gated(golden: Model) -> Gated:
    return Gated(golden.network)


@pytest.fixture
def model(golden: Model, gated: Gated) -> Model:
    """The golden one, behind a gate that is shut."""
    return replace(golden, network=gated)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that were decoded by each forward."""
    seen: list[int] = []

    def watched(*args: Any) -> Iterator[Step]:
        for step in denoise(*args):
            seen.append(sum(step.live))
            yield step

    monkeypatch.setattr("dlm.serving.group.denoise", watched)
    return seen


@pytest.fixture
def engine(model: Model, gated: Gated, sizes: list[int]) -> Iterator[Engine]:
    made = Engine(model, batch_size=4, queue_size=8)
    yield made
    gated.gate.set()
    made.close()
    assert not made.thread.is_alive()


@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_are_what_generate_gives(
    golden: Model, gated: Gated, engine: Engine, decoder: str
) -> None:
    """And what is told on the way is never taken back."""
    gated.gate.set()
    options: dict[str, Any] = {"decoder": decoder}
    if decoder == "remdm":
        options["decoder_options"] = {"loop_steps": 3}  # of 32
    clients = [
        Client(golden, [[1, 2, 3], [4]], follow=True, seed=5, **options),
        Client(golden, [[7] * 9], **options),
        Client(golden, [[8]], follow=True, gen_length=3, **options),
    ]
    for client in clients:
        client.ask(engine)
    for client in clients:
        client.check()


def test_many_ask_at_once(golden: Model, gated: Gated, engine: Engine) -> None:
    """Some agree on how to be decoded, others do not."""
    gated.gate.set()
    options: list[dict[str, Any]] = [
        {}, {"seed": 3}, {"temperature": 0.0}, {"gen_length": 7}, {"steps": 5}, {"cache": "dual"},
        {"decoder": "threshold", "decoder_options": {"threshold": 0.01}}, {"cache": "prefix"},
        {"decoder": "saber"}, {"decoder": "saber", "gen_length": 4}, {"decoder": "pc_sampler"},
        {"cfg_scale": 0.5}, {"block_length": None}, {"cache": "dual", "seed": 9, "gen_length": 3},
    ]  # fmt: skip
    clients = [Client(golden, [[n + 1] * (n % 5 + 1)], n % 2 == 0, **each)
               for n, each in enumerate(options)]  # fmt: skip

    def ask(some: list[Client]) -> None:
        for client in some:
            while True:
                try:
                    client.ask(engine)
                    break
                except Busy:
                    client.over.wait(0.01)

    threads = [threading.Thread(target=ask, args=(clients[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.check()
    assert engine.load() == (0, 0)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_that_agree_share_forwards(
    golden: Model, gated: Gated, engine: Engine, sizes: list[int], cache: str
) -> None:
    """Also those that come later, have another seed, another length or fewer steps."""
    first = Client(golden, [[1, 2]], cache=cache).ask(engine)
    assert gated.reached.wait(PATIENCE)
    more: list[dict[str, Any]] = [{"seed": 1}, {"gen_length": 3}, {"steps": 4}]
    later = [Client(golden, [[3]], cache=cache, **each).ask(engine) for each in more]
    gated.gate.set()
    for client in (first, *later):
        client.check()
    own = cache != "none"  # where a cache is kept the first forward of rows that join is theirs
    made = [client.ends[0].forwards for client in (first, *later)]
    made[0] -= not own
    expected = [sum(count >= k for count in made) for k in range(1 + own, max(made) + 1)]
    assert sizes == [1, *[3] * own, *expected]
    assert max(sizes) == 4


def test_rows_that_do_not_agree_take_turns(
    golden: Model, gated: Gated, engine: Engine, sizes: list[int]
) -> None:
    long = Client(golden, [[1]], gen_length=40, temperature=0.0).ask(engine)
    assert gated.reached.wait(PATIENCE)
    short = Client(golden, [[2]], gen_length=4, temperature=1.0).ask(engine)
    waited: list[bool] = []
    short.heard = lambda: waited.append(long.over.is_set())
    gated.gate.set()
    short.check()
    long.check()
    assert waited == [False]
    assert {*sizes} == {1}


def test_no_more_rows_than_asked_for(
    golden: Model, gated: Gated, engine: Engine, sizes: list[int]
) -> None:
    """The rest waits in order, and is refused where there is no room to wait."""
    first = Client(golden, [[n] for n in range(1, 6)]).ask(engine)
    assert gated.reached.wait(PATIENCE)
    assert engine.load() == (4, 1)
    second = Client(golden, [[n] for n in range(11, 18)], temperature=0.0).ask(engine)
    assert engine.load() == (4, 8)
    with pytest.raises(Busy, match=r"8 rows wait and 1 more do not fit the 8 that may"):
        Client(golden, [[1]]).ask(engine)
    with pytest.raises(ValueError, match="a request must hold at most 8 rows, got 9"):
        Client(golden, [[1]] * 9).ask(engine)
    order: list[int] = []
    first.heard = lambda: order.append(1)
    second.heard = lambda: order.append(2)
    gated.gate.set()
    first.check()
    second.check()
    assert max(sizes) == 4
    assert order == [1] * 4 + [*order[4:]]
    assert order.count(2) == 7


def test_what_is_given_up_is_told_no_more(
    golden: Model, gated: Gated, engine: Engine, sizes: list[int]
) -> None:
    """A row, a request that is decoded, one that waits; others go on."""
    stays = Client(golden, [[1], [2]]).ask(engine)
    gone = Client(golden, [[3], [4]], follow=True).ask(engine)
    waits = Client(golden, [[5]]).ask(engine)
    assert gated.reached.wait(PATIENCE)
    engine.cancel(stays.ticket, 1)
    engine.cancel(gone.ticket)
    engine.cancel(waits.ticket)
    engine.cancel(12345)
    gated.gate.set()
    last = Client(golden, [[6]]).ask(engine)
    last.check()
    while 0 not in stays.ends:
        assert not stays.over.wait(0.01)
    assert [*stays.ends] == [0]
    assert not waits.first.is_set()
    assert not gone.ends
    assert sum(map(len, gone.grown.values())) <= 8
    assert sizes[0] == 4
    assert max(sizes[1:]) == 2
    assert engine.load() == (0, 0)


def test_a_request_that_is_wrong_fails_alone(golden: Model, gated: Gated, engine: Engine) -> None:
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
    golden: Model, gated: Gated, engine: Engine
) -> None:
    """And nothing else: the engine goes on."""
    both = Client(golden, [[1], [2]]).ask(engine)
    waits = [Client(golden, [[3], [4], [5]]).ask(engine)]
    assert gated.reached.wait(PATIENCE)
    gated.error = RuntimeError("out of order")
    gated.gate.set()
    for client in (both, *waits):
        assert str(client.wait().error) == "out of order"
    gated.error = None
    Client(golden, [[6]]).ask(engine).check()
    assert engine.running


def test_who_does_not_listen_is_given_up(golden: Model, gated: Gated, engine: Engine) -> None:
    deaf = Client(golden, [[1]], follow=True, gen_length=40)

    def refuse() -> None:
        raise RuntimeError("the event loop is closed")

    deaf.heard = refuse
    deaf.ask(engine)
    gated.gate.set()
    Client(golden, [[2]], gen_length=40).ask(engine).check()
    assert not deaf.over.is_set()
    assert engine.load() == (0, 0)


def test_closing_fails_what_is_left(golden: Model, gated: Gated, model: Model) -> None:
    engine = Engine(model, batch_size=1)
    begun = Client(golden, [[1], [2]], gen_length=40).ask(engine)
    waits = Client(golden, [[3]], gen_length=40).ask(engine)
    assert gated.reached.wait(PATIENCE)
    begun.heard = waits.heard = lambda: None
    threading.Timer(0.05, gated.gate.set).start()
    engine.close()
    for client in (begun, waits):
        assert str(client.wait().error) == "the engine is closed"
    assert not engine.running
    with pytest.raises(RuntimeError, match="the engine is closed"):
        begun.ask(engine)


@pytest.mark.parametrize("option", ["batch_size", "queue_size"])
def test_sizes_are_checked(golden: Model, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be an int >= 1, got 0"):
        Engine(golden, **{option: 0})
