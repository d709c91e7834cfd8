"""Decodes equal the authors' own code, token for token and canvas for canvas."""

import json
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.decoders import DECODERS
from dlm.models.model import Model

HERE = Path(__file__).parent
DATA = json.loads((HERE / "trajectories.json").read_text())
MASK = DATA["mask_id"]

Case = dict[str, Any]


def options(case: Case) -> dict[str, Any]:
    """Our options for the reference's parameters."""
    params = case["params"]
    out = {
        "decoder": case["policy"],
        "gen_length": params["gen_length"],
        "block_length": params.get("block_length"),
        "cfg_scale": params.get("cfg_scale", 0.0),
        "stop_at_eos": False,
        "return_trajectory": True,
    }
    if case["policy"] == "threshold":
        return out | {"decoder_options": {"threshold": params["threshold"]}}
    return out | {"steps": params["steps"]}


CASES = [c for c in DATA["cases"] if c["policy"] in DECODERS]
GROUPS = [list(group) for _, group in groupby(CASES, key=lambda c: (c["policy"], str(c["params"])))]


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load(HERE / "tiny-llada", dtype="float32")


def distinct(canvases: list[list[int]]) -> list[list[int]]:
    """Without forwards that the reference made and could not use."""
    return [canvas for canvas, _ in groupby(c for c in canvases if MASK in c)]


def check(out: dlm.Generation, row: int, case: Case) -> None:
    assert out.tokens[row] == case["output"]
    assert out.trajectory is not None
    if case["trajectory"] is not None:
        seen = out.trajectory[row].canvases.tolist()
        assert distinct(seen) == distinct(case["trajectory"])
        assert out.forwards[row] == len(seen)


def test_the_cases_are_all_there() -> None:
    assert [c["policy"] for c in CASES].count("low_confidence") == 21
    assert [c["policy"] for c in CASES].count("threshold") == 12
    assert [c["policy"] for c in CASES].count("entropy") == 6
    assert [c["policy"] for c in CASES].count("margin") == 6
    assert all(len(group) == 3 for group in GROUPS)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['policy']}-{len(c['prompt'])}")
def test_alone(model: Model, case: Case) -> None:
    check(dlm.generate(model, [case["prompt"]], **options(case)), 0, case)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g[0]["policy"])
def test_in_a_ragged_batch_in_any_order(model: Model, group: list[Case]) -> None:
    for seed in range(3):
        cases = random.Random(seed).sample(group, len(group)) if seed else group
        out = dlm.generate(model, [c["prompt"] for c in cases], **options(group[0]))
        for row, case in enumerate(cases):
            check(out, row, case)
