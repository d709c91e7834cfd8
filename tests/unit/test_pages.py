"""Pages are found by all that stands in front of them, and make room in the right order."""

import random

import pytest

from dlm.pages import Ledger


@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize("most", range(5))
def test_a_slot_holds_what_its_page_says(page: int, most: int) -> None:
    """Slots stand for memory: what is read there is what was last written."""
    drawn = random.Random(most)
    for _ in range(100):
        ledger = Ledger(page, most)
        memory: dict[int, list[int]] = {}  # of a slot, all of the row up to the end of its page
        for _ in range(40):
            row = drawn.choices(range(3), k=drawn.randrange(5 * page))
            if drawn.random() < 0.6:
                before, whole = ledger.path(row), min(len(row) // page, most)
                made = ledger.add(row)
                assert sorted(made) == [*range(len(before), whole)]
                for number, slot in made.items():
                    memory[slot] = row[: page * (number + 1)]
                assert len(ledger.path(row)) == whole
                continue
            found = ledger.find(row)
            begun = [row[: page * (number + 1)] for number in range(len(found))]
            assert [memory[slot] for slot in found] == begun
            assert len(set(ledger.slots.values())) == len(ledger.slots) <= most


def test_what_was_used_longest_ago_makes_room() -> None:
    ledger = Ledger(1, 3)
    assert ledger.add([1, 2]) == {0: 0, 1: 1}
    assert ledger.add([3]) == {0: 2}
    assert ledger.find([1]) == [0]  # and not the page behind it
    assert ledger.add([4]) == {0: 1}
    assert ledger.find([1, 2]) == [0]
    assert ledger.add([5]) == {0: 2}
    assert ledger.find([3]) == []


def test_a_row_that_is_too_long_leaves_its_beginning() -> None:
    ledger = Ledger(1, 2)
    assert ledger.add([5, 6, 7]) == {0: 0, 1: 1}
    assert ledger.find([5, 6, 7]) == [0, 1]
    assert Ledger(1, 0).add([5]) == {}
