"""Logits against the official code, and against the network written a second time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "families"
OFFICIAL = sorted(path.parent.name for path in GOLDEN.glob("*/logits.json"))


def test_all_official_families_are_here() -> None:
    assert OFFICIAL == ["bd3lm", "dream", "llada2", "llada_moe", "mdlm", "rnd1", "sdar"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", OFFICIAL)
def test_official_logits(family: str, attention: str) -> None:
    """Every record, under the attention it was made with."""
    model = dlm.load(GOLDEN / family, dtype="float32", attn_implementation=attention)
    records = json.loads((GOLDEN / family / "logits.json").read_text())
    assert len(records) >= 3
    for record in records:
        assert record["mask_token_id"] == model.spec.mask_id
        assert (record["shift"] == "next") == model.spec.shift
        if record["attention"] == "block_causal":
            assert record["block_size"] == model.spec.block_size
        spec = replace(model.spec, block_size=record["block_size"])
        found = replace(model, spec=spec).raw_logits(torch.tensor([record["input_ids"]]))[0]
        torch.testing.assert_close(found, torch.tensor(record["logits"]), atol=1e-4, rtol=0)


def question(case: Any) -> tuple[Tensor, Tensor]:
    """Ids, int64 [2, 21], and their logits, float64 [2, 21, V]."""
    ids = torch.randint(90, (2, 21), generator=torch.Generator().manual_seed(1))
    ids[:, 5::3] = 91
    place = torch.arange(21) // (21 if case.causal else case.block or 21)
    if case.reordered:  # where each would stand, all masks behind all tokens
        place = (100 * (ids == 91) + torch.arange(21)).argsort(-1).argsort(-1)[:, None]
    return ids, case.reference(case.weights(), ids, place[..., None] >= place[..., None, :])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_written_a_second_time(
    case: Any,
    written: Callable[[str], Path],
    asks: Callable[[str], dict[str, Any]],
    attention: str,
) -> None:
    model = dlm.load(
        written(case.family),
        dtype=torch.float64,
        attn_implementation=attention,
        **asks(case.family),
    )
    ids, expected = question(case)
    found = model.raw_logits(ids)
    assert found.dtype == torch.float64
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
def test_experts_written_a_second_time(
    family_cases: Any, written: Callable[[str], Path], experts: str
) -> None:
    """SDAR-MoE, as it is loaded by default and otherwise."""
    case = family_cases.CASES["sdar-moe"]
    model = dlm.load(written("sdar-moe"), dtype="float32")
    assert model.network.config._experts_implementation == "grouped_mm"
    model.network.set_experts_implementation(experts)
    ids, expected = question(case)
    torch.testing.assert_close(model.raw_logits(ids).double(), expected, atol=1e-4, rtol=0)
    for other in (replace(case, chosen=2), replace(case, chosen=4), replace(case, block=None)):
        assert (question(other)[1] - expected).abs().max() > 0.5


def test_facts_of_the_random_checkpoints(
    case: Any, written: Callable[[str], Path], asks: Callable[[str], dict[str, Any]]
) -> None:
    spec = dlm.load(written(case.family), **asks(case.family)).spec
    assert spec.family == case.family
    assert spec.shift == case.shift
    assert spec.block_size == case.block
    assert spec.causal == case.causal
    assert spec.mask_id == 91
    assert spec.stop_ids == (90,)
    assert spec.max_length == 128
