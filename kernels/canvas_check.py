"""Self check of the canvas and ranking kernels: do they run on a device and agree with torch?

Like `selfcheck` for the statistics. If nothing can be compiled, or a compiler produces wrong
results, torch takes their place, and a warning gives the reason.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from dlm.kernels import canvas, fused_canvas, fused_ranking, ranking
from dlm.kernels.canvas import Rows, Stops
from dlm.kernels.selfcheck import may_wait

LENGTH: Final = 12
WIDTH: Final = 5
MASK: Final = 7

Trial = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]

_FOUND: dict[torch.device, bool] = {}
"""Results of this process."""


def passes(device: torch.device) -> bool:
    """Whether the kernels can be trusted on a device, checked once per process.

    A failure issues a RuntimeWarning with the reason. While a CUDA graph is captured no check can
    run: the result is False, and is not remembered.

    Raises:
        torch.OutOfMemoryError: There is no memory for the few rows of the check.
    """
    found = _FOUND.get(device)
    if found is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        with may_wait(device):
            wrong = difference(device)
        found = _FOUND[device] = wrong is None
        if wrong is not None:
            warnings.warn(
                f"the Triton kernels beside the network fail their self check on {device}, and "
                f"torch takes their place: {wrong}",
                RuntimeWarning,
                stacklevel=4,
            )
    return found


def difference(device: torch.device) -> str | None:
    """What the kernels and torch disagree on, or None."""
    for fast, plain, given in trials(device):
        expected = plain(*given)
        try:
            found = fast(*given)
            wrong = not _same(found, expected)
        except torch.OutOfMemoryError:  # says nothing about the kernels
            raise
        except Exception as error:  # compiler, driver and launch errors must not end the run
            return f"{type(error).__name__}: {error}"
        if wrong:
            return f"another answer of {plain.__name__}"
    return None


def trials(device: torch.device) -> Iterator[Trial]:
    """Both versions of each function, and arguments: two rows, one of them with nothing to do."""
    place = torch.arange(2 * LENGTH, device=device).view(2, LENGTH)
    row = torch.arange(2, device=device)
    tokens = torch.where(place % 3 == 1, MASK, place % 5)
    blank, window = (place > 3) & (place < 15), place[:, :WIDTH] + 4 * (1 - row[:, None])
    rows = Rows(tokens, blank, 4 * (1 - row), row * 0, 12 - 9 * row, tokens)
    some, hold = window % 2 == 0, row > 0
    stops = Stops(row + 2, 9, "block")
    changes = some, window % 3 == 0, window % 7 == 1
    scores = (window % 3).float().masked_fill(window % 4 == 1, torch.nan)
    yield fused_canvas.write, canvas.write, (tokens, window, window, changes, MASK)
    yield fused_canvas.stop, canvas.stop, (rows, row * 4, hold, MASK, 4, stops)
    yield (
        fused_canvas.stop,
        canvas.stop,
        (rows, row * 4, hold, MASK, 4, replace(stops, settled="row")),
    )
    yield fused_canvas.locate, canvas.locate, (rows, row, hold, MASK, 4, WIDTH, False)
    yield fused_canvas.locate, canvas.locate, (rows, row, hold, MASK, 4, 12, False, 2)
    given = tokens, blank, row * 9 - 1, row + 11, WIDTH, LENGTH, 2
    yield fused_canvas.stretch, canvas.stretch, given
    yield fused_canvas.look, canvas.look, (some, some, row * 2, row)
    yield fused_canvas.judge, canvas.judge, (changes, some, ~some, True)
    yield fused_ranking.descending, ranking.descending, (scores, some)
    yield fused_ranking.rank, ranking.rank, (scores, some)
    yield fused_ranking.top, ranking.top, (scores, some, row + 1)
    yield fused_ranking.at_least, ranking.at_least, (~some, scores, some, row + 1)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return torch.equal(found, expected)
    return all(map(_same, found, expected))
