"""Trajectories on disk: whose they are, what damages them, and one run at a time."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.distill import weights
from dlm.distill.schedule import Distiller, Origin, Recipe
from dlm.distill.schedule_ledger import Ledger, Shape, Trajectory
from dlm.exclusive import alone
from dlm.models.model import Model

Toy = Callable[..., Model]

PROMPTS = [[1], [2, 3], [0, 1, 2], [4, 4], [3]]
ONE = Shape.of([[1]], 8, measured=True)


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
@pytest.mark.parametrize("torn", [b"", b'{"tokens":[1'])
def test_a_ledger_keeps_whole_batches(tmp_path: Path, kept: int, torn: bytes) -> None:
    path = tmp_path / "deep" / "t.jsonl"
    ledger = Ledger(path, {"of": "x"}, ONE)

    def work(begin: int, end: int) -> list[Trajectory]:
        asked.append((begin, end))
        return [Trajectory([n], [0], [[]]) for n in range(begin, end)]

    asked: list[tuple[int, int]] = []
    whole = ledger.fill(PROMPTS, 2, work, lambda *_: None)
    wanted = path.read_bytes()
    lines = wanted.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: kept + 1]) + torn)
    asked.clear()
    assert ledger.fill(PROMPTS, 2, work, lambda *_: None) == whole
    assert path.read_bytes() == wanted
    first = kept if kept == 5 else kept - kept % 2
    assert asked == [(n, min(n + 2, 5)) for n in range(first, 5, 2)]


def test_a_ledger_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    Ledger(path, {"of": "x", "by": 1}, ONE).add([])
    with pytest.raises(ValueError, match="of differ"):
        Ledger(path, {"of": "y", "by": 1}, ONE).read(1, 1)
    path.write_text('{"of":"y","by":1}\nnonsense\n')
    with pytest.raises(ValueError, match="damaged"):
        Ledger(path, {"of": "y", "by": 1}, ONE).read(1, 1)


ROW: dict[str, Any] = {
    "tokens": [1, 2, 3, 4, 0],
    "order": [0, 2, 0, 4, 3],
    "wrong": [[0, 2], [], [0], [1], [0]],
}
# Blocks of 3 and 2 tokens; masks 3, 2, 1 and 2, 1.
SHAPE = Shape.of([[2, 1], [1, 1]], 8, measured=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": [1, 2, 3, 4]}, "tokens must be 5 ints"),
        ({"tokens": [1, 2, 3, 4, 0, 0]}, "tokens must be 5 ints"),
        ({"tokens": "12340"}, "tokens must be 5 ints"),
        ({"tokens": [1, 2, 3, 4, 1.0]}, "tokens must be 5 ints"),
        ({"tokens": [1, 2, 3, 4, True]}, "tokens must be 5 ints"),
        ({"tokens": [1, 2, 3, 4, 8]}, "tokens must be ids below 8"),
        ({"tokens": [1, 2, 3, 4, -1]}, "tokens must be ids below 8"),
        ({"order": [0, 2, 0, 4]}, "order must be 5 ints"),
        ({"order": [0, 2, 0, 4, None]}, "order must be 5 ints"),
        ({"order": [0, 0, 0, 4, 3]}, "order must be that of the plan"),
        ({"order": [0, 3, 0, 4, 2]}, "order must be that of the plan"),
        ({"wrong": []}, "wrong must be 5 lists"),
        ({"wrong": [[0, 2], [], [0], [1], 0]}, "wrong must be ascending ranks"),
        ({"wrong": [[0, 2], [], [0], [1], [False]]}, "wrong must be ascending ranks"),
        ({"wrong": [[0, 3], [], [0], [1], [0]]}, "wrong must be ascending ranks"),
        ({"wrong": [[0, 0], [], [0], [1], [0]]}, "wrong must be ascending ranks"),
        ({"more": 1}, "not a trajectory"),
    ],
    ids=lambda value: json.dumps(value).replace(" ", "") if isinstance(value, dict) else "",
)
def test_a_damaged_row_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "t.jsonl"
    rows = [ROW, ROW | change]
    path.write_text("".join(json.dumps(each) + "\n" for each in ({"of": "x"}, *rows)))
    with pytest.raises(ValueError, match=rf"t.jsonl' is damaged at line 3 \({why}.*: delete it"):
        Ledger(path, {"of": "x"}, SHAPE).read(1, 2)
    path.write_text("".join(json.dumps(each) + "\n" for each in ({"of": "x"}, ROW, ROW)))
    assert Ledger(path, {"of": "x"}, SHAPE).read(1, 2) == [Trajectory(**ROW)] * 2
    with pytest.raises(ValueError, match=r"damaged at line 3 \(more rows than the 1 prompts"):
        Ledger(path, {"of": "x"}, SHAPE).read(1, 1)
    with pytest.raises(ValueError, match=r"damaged at line 2 \(wrong must be 0 lists"):
        Ledger(path, {"of": "x"}, replace(SHAPE, measured=False)).read(1, 2)


def test_facts_that_are_none_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="damaged at line 1"):
        Ledger(path, {"of": "x"}, SHAPE).read(1, 2)


def test_a_second_run_is_refused(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    recipe = Recipe(gen_length=8, block_length=None, refreshes=0)
    made = Distiller.of(toy(1), PROMPTS, recipe, folder, origin=Origin("toy", {"weights": ""}))
    with alone(folder), pytest.raises(ValueError, match=r"runs' must be of one run at a time"):
        made.learn(2)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    made.learn(2)


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from dlm.exclusive import alone\n"
        "with alone(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(ValueError, match="one run at a time"), alone(tmp_path):
                pass
        finally:
            process.kill()
    with alone(tmp_path):
        assert (tmp_path / "lock").exists()


def changed(model: Model, how: Callable[[Any], Any]) -> Model:
    network = copy.deepcopy(model.network)
    how(network)
    return replace(model, network=network)


def last_value(network: Any) -> None:
    weight = max(network.state_dict().values(), key=torch.numel)
    assert weight.numel() > 4096
    weight.view(-1)[-1] += 1


def test_every_value_of_every_weight_counts(golden: Model) -> None:
    found = weights.checksum(golden)
    assert found == weights.checksum(changed(golden, lambda network: None))
    assert found != weights.checksum(changed(golden, last_value))
    half = changed(golden, lambda network: network.to(torch.bfloat16))
    assert len({found, weights.checksum(half)}) == 2
    bent = changed(half, last_value)
    assert weights.checksum(half) != weights.checksum(bent)


def test_weights_elsewhere_are_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match="weights must be in memory"):
        weights.checksum(changed(golden, lambda network: network.to("meta")))


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 4},
        {"shift": True},
        {"suffix": (1,)},
        {"never": (3,)},
        {"unused": (6, 6)},
        {"stop_ids": (1,)},
        {"eos_id": 2},
        {"mask_id": 3},
        {"family": "other"},
    ],
    ids=lambda change: "-".join(change),
)
def test_trajectories_of_another_network_are_refused(
    golden: Model, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "t.jsonl"
    Ledger(path, weights.facts(golden), ONE).add([])
    Ledger(path, weights.facts(golden), ONE).read(1, 1)
    other = replace(golden, spec=replace(golden.spec, **change))
    with pytest.raises(ValueError, match=rf"options: {'_'.join(change)} differ"):
        Ledger(path, weights.facts(other), ONE).read(1, 1)


def test_a_distiller_tells_networks_apart_by_their_facts(golden: Model, tmp_path: Path) -> None:
    recipe = Recipe(gen_length=4, block_length=None, refreshes=0, scale=False)
    other = changed(golden, last_value)
    first, second = (
        Distiller.of(each, [[1, 2]], recipe, tmp_path, origin=Origin.of(each, "x"))
        for each in (golden, other)
    )
    first.teachers()
    with pytest.raises(ValueError, match="options: weights differ"):
        second.teachers()
    assert first.facts()["block_size"] is None
