"""Two gloo processes decode what one does, sharded by transformers or split by accelerate.

Run by torchrun this file is the job of one process; its results go to a file by rank.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

import dlm
from dlm.models.model import Model

PROMPTS = [[5, 6], [17, 3, 300, 44, 9], [8], [2, 2, 2]]
IDS = [[5, 6, 7, 8, 300, 511]]
FEW = [[5, 6, 7, 8, 9, 3]]
PLANNED = ("dream", "llada2", "llada_moe", "rnd1", "sdar")
FAMILIES = Path(__file__).parent.parent / "golden" / "families"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"decoder": "saber", "block_length": 7},
    {"temperature": 0.9, "seed": 3, "decoder": "threshold", "cache": "dual"},
]


def decode(model: Model, prompts: list[list[int]], keys: list[int]) -> list[list[list[int]]]:
    """Tokens of every prompt under every option set."""
    return [
        dlm.generate(model, prompts, gen_length=20, row_keys=keys, **options).tokens
        for options in OPTIONS
    ]


def tensor_parallel(folder: str) -> dict[str, Any]:
    """Layers cut in two by the plan of the configuration."""
    from transformers import AutoModelForMaskedLM
    from transformers.distributed.configuration_utils import DistributedConfig

    network = AutoModelForMaskedLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2), dtype="float32"
    )
    attention = network.model.layers[0].self_attn
    shards = {n: list(getattr(attention, n).weight.to_local().shape) for n in ("q_proj", "o_proj")}
    model = dlm.as_model(network)
    generated = network.generate(torch.tensor(PROMPTS[1:2]), max_new_tokens=20)
    return {
        "shards": shards,
        "logits": model.raw_logits(torch.tensor(IDS)).tolist(),
        "tokens": decode(model, PROMPTS, list(range(4))),
        "generate": generated[0, 5:].tolist(),
    }


def family_parallel(folder: str) -> dict[str, Any]:
    """Logits of every family with a plan, layers cut in two."""
    from transformers import AutoModelForMaskedLM
    from transformers.distributed.configuration_utils import DistributedConfig

    found = {}
    for name in PLANNED:
        network = AutoModelForMaskedLM.from_pretrained(
            Path(folder) / name, distributed_config=DistributedConfig(tp_size=2), dtype="float32"
        )
        sharded = [n for n, p in network.named_parameters() if isinstance(p, DTensor)]
        logits = dlm.as_model(network).raw_logits(torch.tensor(FEW))
        found[name] = {"sharded": len(sharded), "logits": logits.tolist()}
    return found


def data_parallel(folder: str) -> dict[str, Any]:
    """Prompts cut in two, each process with all of the model."""
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.utils import gather_object  # type: ignore[import-untyped]

    process = Accelerator(cpu=True)
    model = dlm.load(folder, dtype="float32")
    with process.split_between_processes(list(enumerate(PROMPTS))) as mine:
        keys, prompts = [key for key, _ in mine], [row for _, row in mine]
        found = decode(model, prompts, keys)
    rows = gather_object([[tokens[i] for tokens in found] for i in range(len(mine))])
    return {"rows": len(mine), "tokens": [[row[i] for row in rows] for i in range(len(OPTIONS))]}


JOBS = {"tensor": tensor_parallel, "families": family_parallel, "data": data_parallel}


def launch(job: str, folder: Path, out: Path) -> list[dict[str, Any]]:
    """The results of both processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, job, str(folder), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_tensor_parallel_equals_one_process(
    golden_folder: Path, golden: Model, tmp_path: Path
) -> None:
    for found in launch("tensor", golden_folder, tmp_path):
        assert found["shards"] == {"q_proj": [32, 64], "o_proj": [64, 32]}
        expected = golden.raw_logits(torch.tensor(IDS))
        torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=0)
        assert found["tokens"] == decode(golden, PROMPTS, list(range(4)))
        assert found["generate"] == found["tokens"][0][1]


@pytest.mark.slow
def test_every_plan_equals_one_process(tmp_path: Path) -> None:
    for found in launch("families", FAMILIES, tmp_path):
        assert tuple(found) == PLANNED
        for name, part in found.items():
            assert part["sharded"] > 4, name
            expected = dlm.load(FAMILIES / name, dtype="float32").raw_logits(torch.tensor(FEW))
            torch.testing.assert_close(
                torch.tensor(part["logits"]), expected, atol=1e-4, rtol=0, msg=name
            )


@pytest.mark.slow
def test_data_parallel_equals_one_process(
    golden_folder: Path, golden: Model, tmp_path: Path
) -> None:
    expected = decode(golden, PROMPTS, list(range(4)))
    for found in launch("data", golden_folder, tmp_path):
        assert found["rows"] == 2
        assert found["tokens"] == expected


if __name__ == "__main__":
    name, checkpoint, target = sys.argv[1:]
    result = JOBS[name](checkpoint)
    (Path(target) / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
