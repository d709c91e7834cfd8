"""Which rows share forwards, and who goes first where there is no room for all."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.constraints.automaton import everything
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.group import Group, Laid, Line

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "engine_cases.py")))
Client, PATIENCE = CASES.Client, CASES.PATIENCE
LARGEST = (1 << 31) - 1


def laid(model: Model, **options: Any) -> Laid:
    """A row of a request with these options."""
    request = Client(model, [[1, 2, 3]], **options).request
    return Laid.of(model, Line(0, 1, 0, request, lambda event: None))


@pytest.mark.parametrize("decoder", ["low_confidence", "saber"])
@pytest.mark.parametrize(
    ("span", "block_length", "wide"),
    [
        (10, 4, 4), (10, 32, 32), (10, 100, 64), (10, LARGEST, 64), (10, None, 64),
        (64, LARGEST, 64), (65, LARGEST, 128), (65, 100, 100), (65, 64, 64), (200, None, 253),
    ],
)  # fmt: skip
def test_windows_are_hardly_wider_than_their_rows(
    golden: Model, decoder: str, span: int, block_length: int | None, wide: int
) -> None:
    """However long a block a request names: memory grows with them."""
    model = replace(golden, spec=replace(golden.spec, max_length=253))
    terms = laid(model, gen_length=span, block_length=block_length, decoder=decoder).terms
    assert (terms.block_length, terms.width) == (wide, span if decoder == "saber" else wide)


@pytest.mark.parametrize(("length", "other"), [(None, LARGEST), (None, 64), (4000, 64), (32, 32)])
def test_rows_of_one_block_share_forwards(golden: Model, length: Any, other: Any) -> None:
    group = Group(laid(golden, gen_length=10, block_length=length), lambda line, event: None)
    assert group.accepts(laid(golden, gen_length=40, block_length=other))
    assert not group.accepts(laid(golden, gen_length=40, block_length=4))


@pytest.mark.parametrize("more", [{}, {"cache": "dual", "top_k": 9, "top_p": 0.9}], ids=str)
def test_rows_share_forwards_at_any_temperature(golden: Model, more: dict[str, Any]) -> None:
    """Those that are drawn with each other, and those that are not."""
    warm, cold = (
        Group(laid(golden, temperature=temperature, **more), lambda line, event: None)
        for temperature in (0.8, 0.0)
    )
    for temperature in (0.8, 1.0, 0.1, 1e-300, 1e300):
        assert warm.accepts(laid(golden, temperature=temperature, **more))
        assert not cold.accepts(laid(golden, temperature=temperature, **more))
    for temperature in (0.0, -0.0, 0):
        assert cold.accepts(laid(golden, temperature=temperature, **more))
        assert not warm.accepts(laid(golden, temperature=temperature, **more))
    for other in ({"top_k": 8}, {"top_p": 0.8}, {"min_p": 0.2}):
        assert not warm.accepts(laid(golden, temperature=0.8, **{**more, **other}))


def test_constraints_are_of_rows(golden: Model) -> None:
    """Which share forwards whatever each is held to, and with rows that are held to nothing.

    But for decoders that take tokens back.
    """
    free = everything(golden.spec)  # no forward is made
    one, two = (dlm.Constraint(name, "vocabulary", "usage", free) for name in "ab")
    for decoder, mixed in (("threshold", True), ("saber", False)):
        held = Group(laid(golden, constraint=one, decoder=decoder), lambda line, event: None)
        assert held.accepts(laid(golden, constraint=two, decoder=decoder))
        assert held.accepts(laid(golden, decoder=decoder)) == mixed


def test_a_large_language_is_decoded_apart(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """But with rows of its own: what others take would grow to what it does."""
    one, two = (dlm.Constraint(name, "", "", everything(golden.spec)) for name in "ab")
    monkeypatch.setattr("dlm.serving.group.LARGE", 0)
    held = Group(laid(golden, constraint=one), lambda line, event: None)
    assert held.accepts(laid(golden, constraint=one))
    assert not held.accepts(laid(golden, constraint=two))
    assert not held.accepts(laid(golden))


def test_filters_that_cut_nothing_are_none(golden: Model) -> None:
    """Clients write them down: they keep nobody from sharing forwards."""
    plain = Group(laid(golden, temperature=1.0), lambda line, event: None)
    assert plain.accepts(laid(golden, temperature=1.0, top_p=1.0, min_p=0.0))
    assert not plain.accepts(laid(golden, temperature=1.0, top_p=0.99))
    greedy = Group(laid(golden, temperature=0.0, top_p=0.9), lambda line, event: None)
    assert greedy.accepts(laid(golden, temperature=0.0, top_p=0.95, top_k=7, min_p=0.1))
    own: dict[str, Any] = {"temperature": 0.0, "decoder": "dream"}
    scored = Group(laid(golden, top_p=0.9, **own), lambda line, event: None)
    assert not scored.accepts(laid(golden, top_p=0.95, **own))


def test_rows_of_one_bias_share_forwards(golden: Model) -> None:
    group = Group(laid(golden, logit_bias={3: 1.0, 9: -2.0}), lambda line, event: None)
    assert group.accepts(laid(golden, logit_bias={"9": -2, "3": 1, 4: 0}))
    assert not group.accepts(laid(golden, logit_bias={3: 1.0, 9: 2.0}))
    assert not group.accepts(laid(golden))
    assert Group(laid(golden), lambda line, event: None).accepts(laid(golden, logit_bias={4: 0}))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_block_longer_than_its_row_is_one_over_all(golden: Model, decoder: str) -> None:
    """Rows are what `dlm.generate` gives, also beside others and in wider windows."""
    options: dict[str, Any] = {"decoder": decoder, "block_length": 4000}
    if decoder == "remdm":
        options["decoder_options"] = {"loop_steps": 3}
    engine = Engine(golden)
    with engine.news:
        clients = [
            Client(golden, [[1, 2], [3]], seed=5, **options).ask(engine),
            Client(golden, [[4]], **{**options, "block_length": None, "gen_length": 7}).ask(engine),
        ]
    for client in clients:
        client.check()
    engine.close()


def test_groups_that_take_turns_are_few(
    golden: Model, gated_model: Model, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds no place waits, and lets a few go first that need none of their own."""
    made: list[Any] = []
    lay_out = Laid.of

    def counted(*given: Any) -> Laid:
        made.append(given)
        return lay_out(*given)

    monkeypatch.setattr("dlm.serving.engine.GROUPS", 2)
    monkeypatch.setattr("dlm.serving.engine.OVERTAKING", 3)
    monkeypatch.setattr(Laid, "of", counted)
    engine = Engine(gated_model, batch_size=9)
    kinds = (1, 2, 3, 2, 4, 1, 3, 2, 2)
    with engine.news:
        clients = [Client(golden, [[1]], top_k=kind).ask(engine) for kind in kinds]
    assert gated.reached.wait(PATIENCE)
    assert engine.load() == (5, 4)
    assert [each.passed for each in engine.waiting] == [3, 2, 1, 0]
    gated.gate.set()
    for client in clients:
        client.check()
    assert len(made) == len(kinds)  # each once
    engine.close()


def test_nobody_waits_for_a_group_for_ever(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come that fit those that there are."""
    monkeypatch.setattr("dlm.serving.engine.GROUPS", 1)
    monkeypatch.setattr("dlm.serving.engine.OVERTAKING", 3)
    engine = Engine(golden, batch_size=4)
    waits = Client(golden, [[1]], top_k=3)
    asked: list[Any] = []

    def ask() -> None:
        if len(asked) < 50 and not waits.over.is_set():
            asked.append(Client(golden, [[2]], gen_length=3 + len(asked) % 2))
            asked[-1].heard = ask
            asked[-1].ask(engine)

    with engine.news:
        ask()
        ask()
        waits.ask(engine)
    waits.check()
    assert len(asked) <= 2 + 3 + 2  # two that began, those that went first, two in their place
    engine.close()


def test_who_waits_for_a_group_gets_the_next_one(
    golden: Model, gated_model: Model, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order they came; one that could join went first."""
    monkeypatch.setattr("dlm.serving.engine.GROUPS", 1)
    engine = Engine(gated_model)
    order: list[int] = []
    with engine.news:
        clients = [Client(golden, [[1]], top_k=kind).ask(engine) for kind in (1, 2, 3, 1)]
    for number, client in enumerate(clients):
        client.heard = partial(order.append, number)
    gated.gate.set()
    for client in clients:
        client.check()
    assert order in ([0, 3, 1, 2], [3, 0, 1, 2])
    engine.close()
