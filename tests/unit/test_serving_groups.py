"""Which rows share forwards, and who goes first where there is no room for all."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
