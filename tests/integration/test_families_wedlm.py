"""WeDLM against Qwen2 and Qwen3 of transformers, and against plain loops over them.

The networks of transformers are given what the authors' are: a row whose masks were moved behind
its tokens, with the positions that all had before, under causal attention. The loops are written
from what the authors' two do, without a cache: the one of their engine, whose window moves with the
first mask, and the one of their Hugging Face class, block by block.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import dlm
from dlm.distill.schedule_states import Layout
from dlm.models.model import Model, masks_last

MASK = 91
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20], [3, 4, 33]]
SHAPES = {
    "qwen2": {
        "qk_norm": False,
        "qkv_bias": True,
        "head": 12,
        "more": {"attention_bias": True, "qk_norm": False},
    },
    "qwen3": {},
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(
    request: pytest.FixtureRequest, family_cases: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Any]:
    """A small checkpoint in ours and, under the same names, in the network of transformers."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    replace(family_cases.CASES["wedlm"], **SHAPES[request.param]).write(folder)
    told = json.loads((folder / "config.json").read_text())
    kinds: tuple[Any, Any] = (Qwen3Config, Qwen3ForCausalLM)
    if request.param == "qwen2":
        kinds = (Qwen2Config, Qwen2ForCausalLM)
    dropped = ("model_type", "auto_map", "architectures", "qk_norm")
    config = kinds[0](**{key: told[key] for key in told if key not in dropped})
    config._attn_implementation = "eager"
    network = kinds[1](config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return dlm.load(folder, dtype="float32"), network.eval()


@pytest.fixture(scope="module")
def model(pair: tuple[Model, Any]) -> Model:
    return pair[0]


@pytest.fixture(scope="module")
def theirs(pair: tuple[Model, Any]) -> Any:
    return pair[1]


def reordered(network: Any, row: Tensor) -> Tensor:
    """Logits [L, V] of a row of int64 [L], each where its token was before masks moved back."""
    order = (row == MASK).long().argsort(stable=True)
    logits = network(row[order][None], position_ids=order[None]).logits[0]
    return torch.empty_like(logits).index_copy_(0, order, logits)


@torch.no_grad()
def test_logits_are_those_of_a_reordered_row(model: Model, theirs: Any) -> None:
    ids = torch.randint(3, 85, (3, 23), generator=torch.Generator().manual_seed(2))
    ids[0, 5::3], ids[1, 9:] = MASK, MASK
    found = model.raw_logits(ids)
    expected = torch.stack([reordered(theirs, row) for row in ids])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (theirs(ids).logits - expected)[0].abs().max() > 0.1  # as they stand
    torch.testing.assert_close(theirs(ids).logits[2], expected[2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_call_of_the_network_is_causal(model: Model, theirs: Any) -> None:
    """As a call of the released one is, with padding on either side."""
    ids = torch.randint(3, 85, (2, 11), generator=torch.Generator().manual_seed(3))
    ids[0, 3:5] = MASK
    torch.testing.assert_close(model.network(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    found = model.network(ids, attention_mask=mask).logits
    expected = theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1, 9])
def test_who_sees_whom(length: int) -> None:
    """Masks stand behind all tokens, in their order, and each sees what stands before itself."""
    generator = torch.Generator().manual_seed(length)
    for _ in range(20):
        masked = torch.rand(2, length, generator=generator) < 0.5
        columns = torch.arange(length)[None]
        sees = masks_last(columns, columns, masked, masked)
        for row, line in zip(masked, sees, strict=True):
            place = row.long().argsort(stable=True).argsort()
            assert torch.equal(line, place[:, None] >= place)


def streamed(
    network: Any, prompt: list[int], gen_length: int, threshold: float, penalty: float, window: int
) -> tuple[list[int], int]:
    """Tokens of one row by the rule of the authors' engine, and forwards."""
    row, forwards = torch.tensor([*prompt, *[MASK] * gen_length]), 0
    while (row == MASK).any():
        first = int((row == MASK).int().argmax())
        seen = row[: first + window]  # what is behind the window is not there yet
        logits = reordered(network, seen)
        logits[:, MASK] = -torch.inf
        law = logits.log_softmax(-1)
        entropy = -(law.exp() * law.clamp(min=-1e9)).sum(-1)
        cost = entropy + penalty * (torch.arange(len(seen)) - first)
        cost = cost.where(seen == MASK, torch.inf)
        sure = cost < threshold
        if not sure.any():
            sure[cost.argmin()] = True
        row[: len(seen)] = torch.where(sure, logits.argmax(-1), seen)
        forwards += 1
    return row[len(prompt) :].tolist(), forwards


@torch.no_grad()
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(("block_length", "sliding"), [(None, False), (1, True), (4, True)])
@pytest.mark.parametrize(
    ("threshold", "penalty", "window"), [(3.6, 0.02, 16), (0.0, 0.3, 5), (3.8, 0.0, 8)]
)
def test_decodes_what_the_authors_engine_does(
    model: Model,
    theirs: Any,
    cache: str,
    block_length: int | None,
    sliding: bool,
    threshold: float,
    penalty: float,
    window: int,
) -> None:
    """Prompts of unlike lengths in one batch; the canvas is longer than the window."""
    options: dict[str, Any] = {"threshold": threshold, "penalty": penalty, "window": window}
    out = dlm.generate(
        model,
        PROMPTS,
        decoder="wedlm",
        decoder_options={**options, "sliding": sliding},
        gen_length=27,
        block_length=block_length,
        cache=cache,
        stop_at_eos=False,
        suppress_tokens=[],
    )
    for number, prompt in enumerate(PROMPTS):
        tokens, forwards = streamed(theirs, prompt, 27, **options)
        assert out.tokens[number] == tokens
        assert out.forwards[number] == forwards
    assert (max(out.forwards) < 27) == (threshold > 0)


def by_blocks(
    network: Any, prompt: list[int], gen_length: int, block_length: int, threshold: float
) -> tuple[list[int], int]:
    """Tokens of one row by the loop of the authors' Hugging Face class, and forwards."""
    row, forwards = torch.tensor(prompt), 0
    while len(row) < len(prompt) + gen_length:
        size = min(block_length, len(prompt) + gen_length - len(row))
        row = torch.cat((row, torch.full((size,), MASK)))
        while (row == MASK).any():
            logits = reordered(network, row)
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            confidence = confidence.where(row == MASK, -1.0)
            sure = confidence >= threshold
            sure[confidence.argmax()] = True
            row = torch.where(sure, token, row)
            forwards += 1
    return row[len(prompt) :].tolist(), forwards


@torch.no_grad()
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(("block_length", "threshold"), [(8, 0.12), (5, 1.0)])
def test_decodes_what_the_authors_class_does(
    model: Model, theirs: Any, cache: str, block_length: int, threshold: float
) -> None:
    """With a cache each block is computed against the keys of what is in front of it."""
    out = dlm.generate(
        model,
        PROMPTS,
        decoder="threshold",
        decoder_options={"threshold": threshold},
        gen_length=19,
        block_length=block_length,
        cache=cache,
        stop_at_eos=False,
        suppress_tokens=[],
    )
    for number, prompt in enumerate(PROMPTS):
        tokens, forwards = by_blocks(theirs, prompt, 19, block_length, threshold)
        assert out.tokens[number] == tokens
        assert out.forwards[number] == forwards


def test_text_behind_a_blank_is_seen_within_its_block(model: Model) -> None:
    """By the blank's masks, and by no token."""
    row = [5, 6, MASK, MASK, 7, 8, 9, 10, 11, 12, 13, 14]
    for block_length, reach in ((None, 12), (4, 2 + 4)):
        plain = dlm.infill(model, [row], block_length=block_length, return_trajectory=True)
        for place in range(4, 12):
            changed = [*row[:place], 50, *row[place + 1 :]]
            other = dlm.infill(model, [changed], block_length=block_length, return_trajectory=True)
            assert plain.trajectory is not None
            assert other.trajectory is not None
            one, two = (out.trajectory[0].commits[0] for out in (plain, other))  # type: ignore[index]
            assert (one.confidence != two.confidence) == (place < reach)


def test_likelihood_is_that_of_decoding(model: Model) -> None:
    """Along the order in which tokens were drawn: the last first, which the others then see."""
    for order in ("left_to_right", "confidence"):
        options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "stop_at_eos": False}
        decoder = "left_to_right" if order == "left_to_right" else "low_confidence"
        out = dlm.generate(
            model,
            [[5, 6, 7, 8]],
            gen_length=9,
            block_length=None,
            decoder=decoder,
            return_trajectory=True,
            **options,
        )
        chain: dict[str, Any] = {"estimator": "chain", "order": order, "samples": 1}
        found = dlm.log_likelihood(model, [5, 6, 7, 8], out.tokens[0], **chain)
        if out.path_log_probability is not None:
            assert found == pytest.approx(out.path_log_probability[0], abs=1e-3)
        assert found < 0


@torch.no_grad()
def test_schedules_are_learned_from_what_decoding_sees(model: Model, theirs: Any) -> None:
    layout = Layout.of(model, PROMPTS, 15, 5)
    spans = layout.blank(2)
    spans[:, :5], spans[0, 7] = 40, 41
    found = layout.logits(spans, [0, 2], 1)
    for line, row in enumerate((0, 2)):
        prompt, span = PROMPTS[row], spans[line].tolist()
        expected = reordered(theirs, torch.tensor([*prompt, *span[:10]]))[-5:]
        torch.testing.assert_close(found[line], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg_scale": 0.5}, "cfg_scale must be 0 for wedlm, where a prompt of masks"),
        ({"decoder": "wino"}, "ask about a token with a mask in its place for wedlm, which has"),
        ({"suffix_window": 8}, "suffix_window must be None for wedlm"),
        ({"cache": "dual", "refresh_around": 2}, "refresh_around must be 0 for wedlm"),
    ],
    ids=str,
)
def test_what_goes_with_no_reordered_row(
    model: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.generate(model, [[5, 6]], gen_length=4, **options)
    with pytest.raises(ValueError, match="cfg_scale must be 0 for wedlm"):
        dlm.log_likelihood(model, [5], [6], cfg_scale=1.0)


def test_facts(written: Callable[[str], Path]) -> None:
    """Blocks of any length, which nobody has to name."""
    spec = dlm.load(written("wedlm")).spec
    assert (spec.causal, spec.reordered, spec.shift) == (True, True, False)
    assert spec.block_size == spec.max_length == 128
    with pytest.raises(ValueError, match="blocks, and wedlm is causal, got 8"):
        dlm.load(written("wedlm"), block_size=8)


def test_gradients_of_head_norms_are_summed_over_processes(model: Model) -> None:
    """The heads are cut, and each process has a whole norm: of Qwen3, as Qwen2 has none."""
    plan = model.network.tp_plan
    styles = {plan.get(f"model.layers.*.self_attn.{norm}") for norm in ("q_norm", "k_norm")}
    assert styles == {"replicated_with_grad_allreduce" if model.network.config.qk_norm else None}


def test_a_call_needs_a_backend_with_masks(written: Callable[[str], Path]) -> None:
    """The message says so, whether or not the caller has given a mask."""
    network = AutoModelForMaskedLM.from_pretrained(
        written("wedlm"), attn_implementation="flex_attention"
    )
    ids = torch.tensor([[5, 6, 7]])
    for mask in (None, torch.ones_like(ids)):
        with pytest.raises(ValueError, match="attn_implementation must be 'sdpa' or 'eager' for "):
            network(ids, attention_mask=mask)
