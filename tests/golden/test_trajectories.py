"""Decodes equal the authors' own code, token for token and canvas for canvas."""

import json
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.models.model import Model

HERE = Path(__file__).parent
DATA = json.loads((HERE / "trajectories.json").read_text())
MASK = DATA["mask_id"]
FREQUENCIES = HERE / "background_frequency.json"

Case = dict[str, Any]

DECODERS = {
    "low_confidence": "low_confidence",
    "threshold": "threshold",
    "threshold+prefix_cache": "threshold",
    "threshold+dual_cache": "threshold",
    "entropy": "entropy",
    "margin": "margin",
    "eb_sampler": "entropy_bound",
    "pc_sampler": "pc_sampler",
    "localleap": "local_leap",
    "dparallel": "entropy_threshold",
    "wino": "wino",
    "saber": "saber",
    "remdm": "remdm",
}
"""Name of a policy in the recordings -> ours."""

WITH_STEPS = {"low_confidence", "entropy", "margin", "pc_sampler"}
"""Policies whose recordings spend a budget; the others took what they needed."""

RENAMED = {"lambd": "lambda_"}
GENERAL = {"steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking", "eos_id"}


def options(case: Case) -> dict[str, Any]:
    """Our options for the reference's parameters."""
    params, policy = case["params"], case["policy"]
    own = {RENAMED.get(k, k): v for k, v in params.items() if k not in GENERAL}
    if policy == "pc_sampler":
        own["frequencies"] = str(FREQUENCIES)
    cache = policy.partition("+")[2].removesuffix("_cache") or "none"
    return {
        "decoder": DECODERS[policy],
        "cache": cache,
        "decoder_options": own,
        "gen_length": params["gen_length"],
        "block_length": params.get("block_length"),
        "steps": params["steps"] if policy in WITH_STEPS else None,
        "cfg_scale": params.get("cfg_scale", 0.0),
        "stop_at_eos": False,
        "return_trajectory": True,
    }


CASES: list[Case] = DATA["cases"]
GROUPS = [list(group) for _, group in groupby(CASES, key=lambda c: (c["policy"], str(c["params"])))]


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load(HERE / "tiny-llada", dtype="float32")


def distinct(canvases: list[list[int]]) -> list[list[int]]:
    """Without forwards that the reference made and could not use."""
    return [canvas for canvas, _ in groupby(canvases)]


def check(out: dlm.Generation, row: int, case: Case) -> None:
    assert out.tokens[row] == case["output"]
    assert out.trajectory is not None
    if case["trajectory"] is not None:
        seen = out.trajectory[row].canvases.tolist()
        recorded = distinct(case["trajectory"])
        if recorded[-1] == case["output"]:  # a forward on a full canvas, of which nothing came
            recorded.pop()
        assert distinct(seen) == recorded
        assert out.forwards[row] == len(seen)


def test_the_cases_are_all_there() -> None:
    assert len(CASES) == 147
    assert {c["policy"] for c in CASES} == set(DECODERS)
    assert all(len(group) == 3 for group in GROUPS)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['policy']}-{len(c['prompt'])}")
def test_alone(model: Model, case: Case) -> None:
    check(dlm.generate(model, [case["prompt"]], **options(case)), 0, case)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g[0]["policy"])
def test_in_a_ragged_batch_in_any_order(model: Model, group: list[Case]) -> None:
    for seed in range(2):
        cases = random.Random(seed).sample(group, len(group)) if seed else group
        out = dlm.generate(model, [c["prompt"] for c in cases], **options(group[0]))
        for row, case in enumerate(cases):
            check(out, row, case)
