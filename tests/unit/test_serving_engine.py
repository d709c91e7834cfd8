"""What is asked of an engine is answered as `dlm.generate` would, whatever else it decodes."""

import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.batch import Change, denoise
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.serving.engine import Engine
from dlm.serving.group import Group, Laid, Line
from dlm.serving.work import Busy, Request

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "engine_cases.py")))
Client, PATIENCE = CASES.Client, CASES.PATIENCE


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
def engine(gated_model: Model, gated: Any, sizes: list[int]) -> Iterator[Engine]:
    made = Engine(gated_model, batch_size=4, queue_size=8)
    yield made
    gated.gate.set()
    made.close()
    assert not made.thread.is_alive()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_are_what_generate_gives(
    golden: Model, gated: Any, engine: Engine, decoder: str
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


def test_many_ask_at_once(golden: Model, gated: Any, engine: Engine) -> None:
    """Some agree on how to be decoded, others do not."""
    gated.gate.set()
    options: list[dict[str, Any]] = [
        {}, {"seed": 3}, {"temperature": 0.0}, {"gen_length": 7}, {"steps": 5}, {"cache": "dual"},
        {"decoder": "threshold", "decoder_options": {"threshold": 0.01}}, {"cache": "prefix"},
        {"decoder": "saber"}, {"decoder": "saber", "gen_length": 4}, {"decoder": "pc_sampler"},
        {"cfg_scale": 0.5}, {"block_length": None}, {"cache": "dual", "seed": 9, "gen_length": 3},
        {"decoder": "wedlm", "decoder_options": {"sliding": True, "threshold": 4.0},
         "block_length": 1, "cache": "dual"},
        {"decoder": "wedlm", "decoder_options": {"sliding": True, "threshold": 4.0},
         "block_length": 1, "cache": "dual", "gen_length": 9},
    ]  # fmt: skip
    clients = [Client(golden, [[n + 1] * (n % 5 + 1)], n % 2 == 0, **each)
               for n, each in enumerate(options)]  # fmt: skip

    def ask(some: list[Any]) -> None:
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


@pytest.mark.parametrize("filters", [{}, {"top_k": 300, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_that_agree_share_forwards(
    golden: Model,
    gated: Any,
    engine: Engine,
    sizes: list[int],
    cache: str,
    filters: dict[str, Any],
) -> None:
    """Those that come later, have another seed, temperature or length, or fewer steps, too."""
    first = Client(golden, [[1, 2]], cache=cache, **filters).ask(engine)
    assert gated.reached.wait(PATIENCE)
    more: list[dict[str, Any]] = [
        {"seed": 1, "temperature": 1.0}, {"gen_length": 3, "temperature": 0.05},
        {"steps": 4, "temperature": 3.0},
    ]  # fmt: skip
    later = [Client(golden, [[3]], cache=cache, **filters, **each).ask(engine) for each in more]
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
    golden: Model, gated: Any, engine: Engine, sizes: list[int]
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
    golden: Model, gated: Any, engine: Engine, sizes: list[int]
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
    golden: Model, gated: Any, engine: Engine, sizes: list[int]
) -> None:
    """A row, a request that is decoded, one that waits; others go on."""
    with engine.news:  # all at once
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


def test_a_row_that_is_given_up_before_it_joins_never_does(golden: Model) -> None:
    request = Client(golden, [[1], [2]]).request
    first, second = (Line(n, 1, n, request, lambda event: None) for n in range(2))
    group = Group(Laid.of(golden, first), lambda line, event: None)
    group.add(Laid.of(golden, second))
    group.drop(second)
    change = group.change()
    assert change.join is not None
    assert (list(change.join.names), change.leave) == ([0], frozenset())
    group.drop(first)
    assert group.change() == Change(frozenset({0}), None)


def test_nothing_is_kept_of_rows_that_are_over(golden: Model, gated: Any, engine: Engine) -> None:
    options: dict[str, Any] = {"follow": True, "decoder": "left_to_right"}
    long = Client(golden, [[1]], gen_length=60, **options).ask(engine)
    assert gated.reached.wait(PATIENCE)
    clients = [Client(golden, [[2]], gen_length=4, **options).ask(engine) for _ in range(5)]
    seen: list[int] = []
    clients[-1].heard = lambda: seen.append(max(len(group.told) for group in engine.groups))
    gated.gate.set()
    for client in (*clients, long):
        client.check()
    assert 2 <= max(seen) <= 4


def test_rows_without_keys_are_told_apart(golden: Model, gated: Any, engine: Engine) -> None:
    gated.gate.set()
    client = Client(golden, [[3, 4]] * 3, row_keys=None, temperature=1.5).ask(engine)
    client.check()
    assert len({tuple(end.tokens) for end in client.ends.values()}) > 1


@pytest.mark.parametrize("more", [(False, False, 0), (True, True, 0), (True, True, 2)])
@pytest.mark.parametrize("decoder", ["low_confidence", "left_to_right", "pc_sampler"])
def test_rows_of_a_request_make_no_decoder_each(
    golden: Model, decoder: str, more: tuple[bool, bool, int]
) -> None:
    """One may hold a list as long as a vocabulary, that every row would be compared by."""
    asked = Client(golden, [[1], [2]], decoder=decoder).request
    request = Request(asked.rows, asked.spans, asked.settings, *more)
    laid = [Laid.of(golden, Line(n, 1, n, request, lambda event: None)) for n in range(2)]
    assert laid[0].terms.decoder is laid[1].terms.decoder


@pytest.mark.parametrize("option", ["batch_size", "queue_size"])
def test_sizes_are_checked(golden: Model, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be an int >= 1, got 0"):
        Engine(golden, **{option: 0})  # type: ignore[arg-type]
