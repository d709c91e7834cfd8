"""Which process this is."""

from typing import Any

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
    ("size", "name", "seen", "device"),
    [(1, "cuda", 8, "cuda"), (2, "cuda", 2, "cuda:1"), (2, "cuda", 1, "cuda"), (2, "cpu", 2, "cpu"),
     (2, None, 2, None), (2, "cuda:0", 2, "cuda:0")],
)  # fmt: skip
def test_a_process_takes_a_device_of_its_own_where_it_sees_several(
    size: int, name: str | None, seen: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    assert World(rank=1, size=size, local_rank=1).device(name) == device


@pytest.mark.parametrize(
    ("told", "named"),
    [({"WORLD_SIZE": "2"}, "RANK"), ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE"),
     ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK")],
)  # fmt: skip
def test_half_a_launcher_is_refused(told: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be an int >= 0 beside WORLD_SIZE"):
        World.of(told)


def test_processes_with_other_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(out: list[Any], mine: Any) -> None:
        out[:] = [{"device": "A", "seed": 0}, mine]

    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    World(rank=1, size=2).agree({"device": "A", "seed": 0})
    with pytest.raises(ValueError, match="one device, got 'A' in process 0 and 'B' in process 1"):
        World(rank=1, size=2).agree({"device": "B", "seed": 0})


def test_what_the_first_process_refuses_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(values: list[Any]) -> None:
        sent.append(list(values))
        values[:] = ["no"]  # what the first one sent

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)

    def refuse() -> None:
        raise ValueError("no")

    for rank in (0, 1):  # the second one need not come to do it
        with pytest.raises(ValueError, match=r"^no$"):
            World(rank=rank, size=2).first(refuse)
    assert sent == [["no"], [None]]
    with pytest.raises(ValueError, match=r"^no$"):
        World().first(refuse)
    World().first(lambda: None)
    assert len(sent) == 2  # alone there is nobody to tell
