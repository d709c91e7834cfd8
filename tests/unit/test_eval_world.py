"""Which process this is."""

import pytest

from dlm.eval.world import World


def test_without_a_launcher_a_process_is_alone() -> None:
    assert World.of({}) == World(rank=0, size=1, local_rank=0)
    World.of({}).join()
    World.of({}).wait()
    World.of({}).leave()


def test_a_launcher_tells_rank_and_size() -> None:
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "1"}
    assert World.of(told) == World(rank=3, size=4, local_rank=1)


@pytest.mark.parametrize(
    ("size", "name", "device"),
    [(1, "cuda", "cuda"), (2, "cuda", "cuda:1"), (2, "cpu", "cpu"), (2, None, None),
     (2, "cuda:0", "cuda:0")],
)  # fmt: skip
def test_every_process_has_a_device_of_its_own(
    size: int, name: str | None, device: str | None
) -> None:
    assert World(rank=1, size=size, local_rank=1).device(name) == device
