"""Experts cut in two, within each expert or by expert, give the logits of one process.

Run by torchrun this file is the job of one process; its results go to a file by rank.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm

GOLDEN = Path(__file__).parent.parent / "golden" / "families"
FOLDERS = ("llada2", "llada_moe", "rnd1")
PLANS: dict[str, Any] = {"within": {"tp_size": 2}, "by_expert": {"tp_size": 2, "ep_size": 2}}
IDS = [[5, 6, 7, 8, 300, 311, 2, 9, 200, 100]]
EXPERTS = {  # all of them, the width of gate and up, and the width of the model
    "llada2": [16, 48, 64],
    "llada_moe": [8, 64, 64],
    "rnd1": [8, 64, 64],
}


def run(plan: str) -> dict[str, Any]:
    """Logits and the shape of what is here of the experts, for every folder."""
    from transformers import AutoModelForMaskedLM
    from transformers.distributed.configuration_utils import DistributedConfig

    found = {}
    for folder in FOLDERS:
        network = AutoModelForMaskedLM.from_pretrained(
            GOLDEN / folder, distributed_config=DistributedConfig(**PLANS[plan]), dtype="float32"
        )
        weight = network.model.layers[1].mlp.experts.gate_up_proj
        with torch.no_grad():
            logits = network.eval()(torch.tensor(IDS)).logits
        found[folder] = {"shape": list(weight.to_local().shape), "logits": logits.tolist()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_equals_one_process(plan: str, tmp_path: Path) -> None:
    from transformers.distributed.configuration_utils import DistributedConfig

    known = {field.name for field in dataclasses.fields(DistributedConfig)}
    if not PLANS[plan].keys() <= known:
        pytest.skip("this transformers splits experts by another plan")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, plan, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "match nothing" not in done.stderr, "rules of a plan that fit no module"
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for folder in FOLDERS:
            shape = list(EXPERTS[folder])
            shape[0 if plan == "by_expert" else 1] //= 2
            assert found[folder]["shape"] == shape
            whole = dlm.load(GOLDEN / folder, dtype="float32").network
            with torch.no_grad():
                expected = whole(torch.tensor(IDS)).logits
            logits = torch.tensor(found[folder]["logits"])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


if __name__ == "__main__":
    name, target = sys.argv[1:]
    result = run(name)
    (Path(target) / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
