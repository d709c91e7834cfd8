"""Batches, the clock and what is counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]

import dlm
from dlm.eval.counting import DEFINITIONS, Counts
from dlm.eval.decode import Item, Output, decode, response_length, undecoded, warm_up
from dlm.eval.inference import wilson
from dlm.eval.sample import Sample
from dlm.eval.summary import HEAD
from dlm.eval.task import Problem, Template
from dlm.models.model import Model
from dlm.outputs import Generation

TEMPLATE = Template("t", "{question}")


def item(index: int, length: int) -> Item:
    problem = Problem(str(index), {"question": "?"}, "a")
    return Item(TEMPLATE, problem, index, "?", [1] * length)


def sample(**counts: Any) -> Sample:
    return Sample(
        task="t", template="t", id="0", index=0, prompt="?", prompt_tokens=7, output="",
        tokens=[], order=[], answer="", extracted={}, scores={"s": 1.0}, score=1.0, detail="",
        seed=0, settings="", **counts,
    )  # fmt: skip


class Network:
    """What `decode` asks of a model."""

    class spec:
        stop_ids = (0, 9)


class Recorder:
    """Stands in for `dlm.generate_each`, with memory for `most` rows; the last is done first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[list[int]] = []

    def __call__(
        self, model: Any, rows: list[list[int]], *, batch_size: int, **options: Any
    ) -> Iterator[tuple[int, Generation]]:
        assert options["return_order"] is True
        keys = options["row_keys"]
        self.calls.append(list(keys))
        for first in range(0, len(rows), batch_size):
            some = list(enumerate(rows))[first : first + batch_size]
            if len(some) > self.most:
                raise torch.OutOfMemoryError
            for place, row in reversed(some):
                yield (
                    place,
                    Generation(
                        tokens=[[5, 9, 0]],
                        texts=[f"text {keys[place]}"],
                        decoded=[2],
                        forwards=[2],
                        query_tokens=[10 * len(row)],
                        order=[[0, 1, -1]],
                    ),
                )


def decoded(items: list[Item], batch_size: int) -> list[list[Output]]:
    return list(decode(Network(), items, {}, batch_size))  # type: ignore[arg-type]


def test_items_are_told_of_once_a_batch_of_them_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlm, "generate_each", Recorder(most=9))
    found = decoded([item(index, 4) for index in range(5)], 2)
    assert [[each.item.index for each in some] for some in found] == [[1, 0], [3, 2], [4]]


def test_a_batch_that_needs_too_much_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that were done before that none is decoded again."""
    fake = Recorder(most=2)
    monkeypatch.setattr(dlm, "generate_each", fake)
    items = [item(index, 4) for index in range(7)]
    found = [each for some in decoded(items, 6) for each in some]
    assert sorted(each.item.index for each in found) == list(range(7))
    assert all(each.text == f"text {each.item.index}" for each in found)
    assert fake.calls == [list(range(7))] * 2 + [list(range(7))]
    fake.most = 1
    monkeypatch.setattr(fake, "calls", [])
    assert len([each for some in decoded(items[:5], 4) for each in some]) == 5
    assert fake.calls == [[0, 1, 2, 3, 4]] * 3


def test_fewer_rows_than_a_batch_are_halved_from_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = Recorder(most=1)
    monkeypatch.setattr(dlm, "generate_each", fake)
    assert len(decoded([item(index, 4) for index in range(3)], 64)[0]) == 3
    assert len(fake.calls) == 2


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_what_is_done_is_told_before_an_error(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real = Recorder(most=9)

    def each(model: Any, rows: list[list[int]], **options: Any) -> Iterator[Any]:
        yield from list(real(model, rows, **options))[:3]
        raise error

    monkeypatch.setattr(dlm, "generate_each", each)
    items = [item(index, 4) for index in range(6)]
    made = decode(Network(), items, {}, 2)  # type: ignore[arg-type]
    assert [[each.item.index for each in next(made)] for _ in range(2)] == [[1, 0], [3]]
    with pytest.raises(type(error)):
        next(made)


def test_a_row_that_needs_too_much_memory_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dlm, "generate_each", Recorder(most=0))
    with pytest.raises(torch.OutOfMemoryError):
        decoded([item(0, 4), item(1, 4)], 16)


def test_seconds_of_a_batch_are_shared_by_query_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlm, "generate_each", Recorder(most=9))
    clock = iter([100.0, 104.0, 105.0, 107.0, 110.0])
    monkeypatch.setattr("dlm.eval.decode.time.perf_counter", lambda: next(clock))
    (short, long), (last,) = decoded([item(0, 3), item(1, 1), item(2, 1)], 2)
    assert (short.seconds, long.seconds, last.seconds) == (1.0, 3.0, 2.0)
    assert (long.response_tokens, long.decoded_tokens, long.forwards) == (1, 2, 2)
    assert (long.query_tokens, long.order) == (30, [0, 1, -1])


def test_the_response_ends_in_front_of_the_first_stop_token() -> None:
    stops = {0, 9}
    assert response_length([5, 4, 9, 5, 0], stops) == 2
    assert response_length([0], stops) == 0
    assert response_length([5, 5], stops) == 2


def test_the_warm_up_takes_two_forwards(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = []
    network = type(golden.network.model).forward

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        forwards.append(1)
        return network(self, *given, **more)

    monkeypatch.setattr(type(golden.network.model), "forward", counted)
    long = Item(TEMPLATE, Problem("0", {}, ""), 0, "?", [5, 6])
    warm_up(golden, long, {"gen_length": 9, "decoder": "low_confidence", "stop_at_eos": False})
    assert len(forwards) == 2
    warm_up(golden, long, {"gen_length": 1, "decoder": "low_confidence", "stop_at_eos": False})
    assert len(forwards) == 3  # a canvas of one mask has no second one


def test_counts_are_sums_and_their_ratios() -> None:
    rows = [
        sample(response_tokens=6, decoded_tokens=8, forwards=2, query_tokens=20, seconds=0.5),
        sample(response_tokens=2, decoded_tokens=8, forwards=6, query_tokens=60, seconds=1.5),
    ]
    counts = Counts.of(rows)
    assert (counts.forwards_per_row, counts.query_tokens_per_row) == (4.0, 40.0)
    assert (counts.response_tokens_per_forward, counts.tokens_per_forward) == (1.0, 2.0)
    assert (counts.response_tokens_per_second, counts.tokens_per_second) == (4.0, 8.0)
    assert counts.seconds_per_row == 1.0


def test_what_was_not_decoded_counts_in_no_mean() -> None:
    nothing = undecoded(item(0, 4))
    empty = {
        "response_tokens": 0, "decoded_tokens": 0, "forwards": 0, "query_tokens": 0, "seconds": 0.0
    }  # fmt: skip
    assert {name: getattr(nothing, name) for name in empty} == empty
    full = sample(response_tokens=6, decoded_tokens=8, forwards=2, query_tokens=20, seconds=0.5)
    assert Counts.of([full, sample(**empty)]) == Counts.of([full])
    alone = Counts.of([sample(**empty)])
    assert (alone.samples, alone.forwards_per_row, alone.tokens_per_second) == (0, 0.0, 0.0)


def test_every_column_is_defined() -> None:
    defined = {name for name, _ in DEFINITIONS} & set(HEAD)
    assert {"forwards", "query tokens", "response / forward", "tokens / forward"} <= defined
    assert {"response / s", "tokens / s"} <= defined


def test_the_page_about_evaluation_has_the_definitions() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    for name, meaning in DEFINITIONS:
        assert f"| {name} | {meaning} |" in page


@pytest.mark.parametrize(("right", "count"), [(0, 10), (4, 4), (1, 1), (7, 20), (1021, 1319)])
def test_intervals_are_those_of_wilson(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("count", [*range(1, 60), 164, 500, 1319])
def test_intervals_end_at_nothing_and_at_everything(count: int) -> None:
    assert wilson(0.0, count)[0] == 0.0
    assert wilson(1.0, count)[1] == 1.0
