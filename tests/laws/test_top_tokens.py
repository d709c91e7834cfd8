"""Lists of the likeliest tokens of steps that are recorded, and of rows in any batch."""

from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.execution import Execution
from dlm.models.model import Model

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
Tops = list[list[tuple[int, Any]]]


def run(model: Model, execution: Execution, rows: list[list[int]], **options: Any) -> list[Tops]:
    usual: dict[str, Any] = {"gen_length": 10, "block_length": 5, "temperature": 0.8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        out = dlm.generate(model, rows, **{**usual, **options})
    assert (out.top_tokens is None) == (not options.get("return_top_tokens"))
    return out.top_tokens or []


def about(rows: list[Tops]) -> list[Tops]:
    """The same, up to rounding."""
    return [[[(t, pytest.approx(p, abs=1e-4)) for t, p in top] for top in row] for row in rows]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("decoder", ["low_confidence", "left_to_right", "klass", "dream"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_recorded_steps_list_the_same(
    golden: Model, traced: Callable[..., Execution], decoder: str, cache: str
) -> None:
    """Those without lists are others, and so are those of other lengths."""
    execution = traced()
    options: dict[str, Any] = {"decoder": decoder, "cache": cache}
    for count in (0, 3, 3, 1):
        found = run(golden, execution, ROWS, return_top_tokens=count, **options)
        assert found == about(run(golden, Execution(), ROWS, return_top_tokens=count, **options))


@pytest.mark.parametrize("decoder", ["saber", "threshold"])
def test_a_row_has_its_lists_in_any_batch(golden: Model, decoder: str) -> None:
    options: dict[str, Any] = {"decoder": decoder, "return_top_tokens": 4}
    whole = run(golden, Execution(), ROWS, **options)
    for key, row in enumerate(ROWS):
        alone = run(golden, Execution(), [row], row_keys=[key], **options)
        assert alone == about(whole[key : key + 1])
