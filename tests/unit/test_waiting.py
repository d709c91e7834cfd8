"""When rows that wait take the empty places of a batch."""

import pytest

from dlm.waiting import Places


def joins(apart: bool, counts: list[int], waiting: int = 9) -> list[int]:
    """Rows that join a batch of four after forwards that so many rows were in."""
    places = Places(4, apart)
    return [places.room(count, waiting) for count in counts]


@pytest.mark.parametrize(("counts", "joined"), [
    ([4, 4, 3, 3, 3, 3], [0, 0, 0, 0, 0, 1]),  # one place is empty for four forwards
    ([4, 2, 2, 4], [0, 0, 2, 0]),
    ([3, 1, 4, 3], [0, 3, 0, 0]),
    ([0], [4]),  # nobody has to wait for them
], ids=str)  # fmt: skip
def test_rows_with_a_forward_of_their_own_wait_for_company(
    counts: list[int], joined: list[int]
) -> None:
    assert joins(True, counts) == joined


def test_others_join_at_once() -> None:
    assert joins(False, [4, 3, 2, 4]) == [0, 1, 2, 0]
    assert joins(False, [0, 2], waiting=0) == [0, 0]
    assert joins(True, [0, 2], waiting=0) == [0, 0]
