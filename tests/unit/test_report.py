"""What the host reads of a step is what the step told, whichever parts a report has."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm.contract import Violation
from dlm.report import After, Report

RULES = (Violation.NAN, Violation.COMMIT, Violation.BOUND)
BATCH = 3


def number(value: int) -> torch.Tensor:
    return torch.tensor([value])


def report_of(branches: int, caching: bool, opens: bool, spares: bool, sees: bool) -> Report:
    refreshes: Any = SimpleNamespace(
        decoded_every=int(spares),
        reach=lambda seen, progress: number(40),
        spared=lambda canvas, progress: number(5),
    )
    traits = SimpleNamespace(branches=branches, open=print if opens else None)
    opening: Any = SimpleNamespace(traits=traits, most=lambda progress: number(16))
    return Report(RULES, refreshes, opening, caching=caching, sees=sees)


def after(branches: int) -> After:
    """COMMIT is broken, the second row is done, and a branch of the third tries something."""
    marks = torch.zeros(BATCH, branches, 2, dtype=torch.bool)
    marks[1:, -1, 0] = True
    progress: Any = SimpleNamespace(
        done=torch.tensor([False, True, False]),
        scopes=torch.tensor([2, 0, 1]),
        guess=SimpleNamespace(marks=marks) if branches > 1 else None,
    )
    seen: Any = SimpleNamespace(length=torch.tensor([7, 8, 9]))
    broken = {rule: torch.tensor(rule is Violation.COMMIT) for rule in reversed(RULES)}
    return After(broken, SimpleNamespace(), seen, progress)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("branches", "caching", "opens", "spares", "sees"),
    [*product((1, 2), *[(False, True)] * 4)],
)
def test_a_report_is_read_as_it_was_written(
    branches: int, caching: bool, opens: bool, spares: bool, sees: bool
) -> None:
    report = report_of(branches, caching, opens, spares, sees)
    written = report.write(after(branches))
    assert written.dtype == torch.int64
    told = report.read(written.tolist(), BATCH)
    assert told.broken == [Violation.COMMIT]
    assert told.done == [False, True, False]
    expected = {"tries": [1]} if branches > 1 else {}
    expected |= {"scopes": [2, 0, 1], "reach": [40]} if caching else {}
    expected |= {"most": [16]} if opens else {}
    expected |= {"spared": [5]} if spares else {}
    expected |= {"sees": [7, 8, 9]} if sees else {}
    rest = {name: value for name, value in told.numbers.items() if isinstance(name, str)}
    assert rest == expected | {"done": [0, 1, 0]}
    assert sum(map(len, told.numbers.values())) == len(written)


def test_rows_that_are_done_try_nothing() -> None:
    left = after(2)
    left.progress.done.fill_(True)
    report = report_of(2, False, False, False, False)
    told = report.read(report.write(left).tolist(), BATCH)
    assert told.one("tries", 0) == 0
    assert told.one("reach", 12) == 12
