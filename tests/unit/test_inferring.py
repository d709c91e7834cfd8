"""Generators in inference mode, and those who ask them outside of it."""

from collections.abc import Iterator

import pytest
import torch

from dlm.inferring import inferring


def test_the_mode_is_that_of_the_generator_alone() -> None:
    """To its close, and to whatever it raises."""
    seen: list[bool] = []

    @inferring
    def numbers(count: int) -> Iterator[int]:
        try:
            for number in range(count):
                seen.append(torch.is_inference_mode_enabled())
                yield number
            raise OSError("no more")
        finally:
            seen.append(torch.is_inference_mode_enabled())

    found: list[tuple[int, bool]] = []
    each = ((number, torch.is_inference_mode_enabled()) for number in numbers(2))
    with pytest.raises(OSError, match="no more"):
        found.extend(each)
    assert found == [(0, False), (1, False)]
    assert seen == [True, True, True]
    left = numbers(3)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert seen[3:] == [True, True]
    assert not torch.is_inference_mode_enabled()
