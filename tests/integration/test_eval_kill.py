"""A run that is killed at any moment and started again: the same samples, each exactly once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = 20

PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
from typing import Any

import torch

import dlm
from dlm.eval.folder import read_run
from dlm.eval.plan import choose_options, choose_templates, make_plan
from dlm.eval.runner import evaluate
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
with silence():
    model = dlm.load()
task = TASKS["sudoku"]
options = choose_options(task, None, {"decoder": "low_confidence", "temperature": 1.0, "seed": 5})
templates = choose_templates(task, ["plain"], chat=True)
plan = make_plan(task, templates, options, limit=12, samples=2)

def run(output):
    return evaluate(model, plan, output, name="built-in", batch_size=2)

began = time.perf_counter()
run(folder / "whole")
usual = time.perf_counter() - began
draw = random.Random(7)
killed, rounds, stages = 0, 0, []
while killed < kills:
    rounds += 1
    output = folder / f"killed{rounds}"
    while True:
        child = os.fork()
        if not child:
            run(output)
            os._exit(0)
        if killed < kills:
            time.sleep(draw.uniform(0.0, usual / 3))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        killed += 1
        there = (output / "run.json").exists()
        stages.append(len(read_run(output).samples) if there else -1)
print(json.dumps({"rounds": rounds, "killed": killed, "stages": stages}))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Runs that were killed and went on, beside one that was left alone."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def lines(folder: Path) -> list[dict[str, object]]:
    """The samples as they stand on disk, without the time they took."""
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{k: v for k, v in each.items() if k != "seconds"} for each in found]


@pytest.mark.slow
def test_kills_hit_runs_in_the_middle(killed: tuple[Path, dict[str, Any]]) -> None:
    _, told = killed
    assert told["killed"] == KILLS
    assert len({stage for stage in told["stages"] if 0 < stage < 24}) > 3


@pytest.mark.slow
def test_killed_runs_end_with_every_sample_once(
    killed: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = killed
    whole = lines(folder / "whole")
    expected = [(index, repeat) for index in range(12) for repeat in range(2)]
    assert [(each["index"], each["repeat"]) for each in whole] == expected
    for number in range(1, told["rounds"] + 1):
        assert lines(folder / f"killed{number}") == whole
