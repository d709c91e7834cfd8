"""Nemotron-Labs-Diffusion against Ministral 3 of transformers, and a plain loop over that.

The loop is written from what the authors' one does with a prompt and its blocks: a prefill with a
causal mask, whose keys are kept; the masks of a block, which see those and each other; a causal
pass over the filled block. Theirs also takes the first token of a block from the causal pass.

Shapes: B rows, L tokens, W tokens of a block, V vocabulary.
"""

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM

import dlm
from dlm.distill.certainty_batches import check_targets
from dlm.distill.certainty_targets import Target, Teacher, check_job
from dlm.distill.schedule_states import Layout
from dlm.models.model import Model, causal_context
from dlm.models.nemotron import NemotronLabsDiffusionModel
from dlm.models.nemotron_configs import ROTARY, NemotronLabsDiffusionConfig

NAME = "nemotron-labs-diffusion"
MASK = 91
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20], [3, 4, 33]]


@pytest.fixture(scope="module")
def folder(written: Callable[[str], Path]) -> Path:
    """The small checkpoint, written from the released form."""
    return written(NAME)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return dlm.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def ministral(folder: Path) -> Any:
    """The same weights in the network of transformers."""
    told = json.loads((folder / "config.json").read_text())
    kept = {f.name for f in Ministral3Config.__dataclass_fields__.values()} - {"model_type"}
    config = Ministral3Config(**{key: told[key] for key in kept & told.keys()})
    config._attn_implementation = "eager"
    network = Ministral3ForCausalLM(config)
    names = {"encoder.": "model.", "diffusion_head.": "lm_head."}
    weights = load_file(folder / "model.safetensors")
    for old, new in names.items():
        weights = {key.replace(old, new): tensor for key, tensor in weights.items()}
    network.load_state_dict(weights)
    return network.eval()


def loop(
    network: Any, prompt: list[int], gen_length: int, block_length: int, threshold: float
) -> tuple[list[int], int]:
    """Tokens of one row, and forwards of blocks that decided something."""
    cache = DynamicCache()
    named = "cache" if "cache" in signature(network.forward).parameters else "past_key_values"
    kept_in: dict[str, Any] = {named: cache}  # past_key_values until transformers 5.24
    network(torch.tensor([prompt]), **kept_in, use_cache=True)  # causal by itself
    made: list[int] = []
    forwards = 0
    while len(made) < gen_length:
        size = min(block_length, gen_length - len(made))
        block = torch.full((size,), MASK)
        while (block == MASK).any():
            kept = cache.get_seq_length()
            sees_all = torch.zeros(1, 1, size, kept + size)
            logits = network(
                block[None],
                attention_mask=sees_all,
                **kept_in,
                position_ids=torch.arange(kept, kept + size)[None],
            ).logits[0]
            cache.crop(-size)
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            confidence = confidence.where(block == MASK, -1.0)
            sure = confidence > threshold
            sure[confidence.argmax()] = True
            block = torch.where(sure, token, block)
            forwards += 1
        network(block[None], **kept_in, use_cache=True)
        made += block.tolist()
    return made, forwards


@torch.no_grad()
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("threshold", [0.12, 1.0])
@pytest.mark.parametrize(("gen_length", "block_length"), [(24, 8), (19, 5)])
def test_decodes_what_a_plain_loop_does(
    model: Model,
    ministral: Any,
    cache: str,
    threshold: float,
    gen_length: int,
    block_length: int,
) -> None:
    """Rows of unlike lengths in one batch, on beyond the positions where queries are scaled."""
    out = dlm.generate(
        model,
        PROMPTS,
        decoder="threshold",
        decoder_options={"threshold": threshold},
        gen_length=gen_length,
        block_length=block_length,
        cache=cache,
        stop_at_eos=False,
        suppress_tokens=[],
    )
    for number, prompt in enumerate(PROMPTS):
        tokens, forwards = loop(ministral, prompt, gen_length, block_length, threshold)
        assert out.tokens[number] == tokens
        assert out.forwards[number] == forwards
    if threshold < 1:
        assert max(out.forwards) < gen_length


@torch.no_grad()
def test_what_is_before_a_block_is_an_autoregressive_network(model: Model, ministral: Any) -> None:
    """Token for token Ministral 3, whose logits at a block see all of it."""
    ids = torch.randint(3, 85, (2, 23), generator=torch.Generator().manual_seed(2))
    columns = torch.arange(23)[None]
    begin, end = torch.tensor([23, 9]), torch.tensor([23, 17])
    seen = causal_context(columns, columns, begin, end)
    assert seen[0].sum(-1).tolist() == [*range(1, 24)]
    assert seen[1].sum(-1).tolist() == [*range(1, 10), *[17] * 8, *range(18, 24)]
    found = model.logits(model.hidden(ids, columns, None, attend=seen))
    torch.testing.assert_close(found[:1], ministral(ids[:1]).logits, atol=1e-4, rtol=0)
    unseen = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]
    expected = ministral(ids, attention_mask=unseen).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    whole = ministral(ids, attention_mask=torch.zeros(1, 1, 23, 23)).logits
    torch.testing.assert_close(model.raw_logits(ids), whole, atol=1e-4, rtol=0)
    assert (found - whole).abs().max() > 0.1


@torch.no_grad()
def test_padding_in_front_is_no_place(model: Model) -> None:
    """Queries are scaled by their position, so that columns of padding must not count."""
    row = torch.randint(0, 80, (1, 40), generator=torch.Generator().manual_seed(0))
    front = torch.zeros(1, 33, dtype=torch.int64)
    mask = torch.cat((front, torch.ones_like(row)), 1)
    found = model.network(torch.cat((front, row), 1), attention_mask=mask).logits[:, 33:]
    torch.testing.assert_close(found, model.network(row).logits, atol=2e-4, rtol=0)


def test_blocks_begin_where_a_prompt_ends(model: Model) -> None:
    """Of any length up to that of the network's."""
    for asked, length in [(None, 8), (32, 8), (8, 8), (5, 5), (3, 3)]:
        out = dlm.generate(
            model, [[5, 6, 7]], decoder="random", gen_length=17, block_length=asked,
            return_order=True, stop_at_eos=False,
        )  # fmt: skip
        assert out.order is not None
        blocks = [
            place // length for _, place in sorted((n, i) for i, n in enumerate(out.order[0]))
        ]
        assert blocks == sorted(blocks)
        assert len({*blocks}) == -(-17 // length)


def test_text_behind_a_blank_is_seen_within_its_block(model: Model) -> None:
    row = [5, 6, MASK, MASK, 7, 8, 9, 10, 11, 12, 13, 14]
    plain = dlm.infill(model, [row], return_trajectory=True)
    for place in range(4, 12):
        changed = [*row[:place], 50, *row[place + 1 :]]
        other = dlm.infill(model, [changed], return_trajectory=True)
        assert plain.trajectory is not None
        assert other.trajectory is not None
        one, two = (out.trajectory[0].commits[0] for out in (plain, other))  # type: ignore[index]
        assert (one.confidence != two.confidence) == (place < 2 + 8)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_likelihood_is_that_of_decoding(model: Model, cfg_scale: float) -> None:
    """Along the order in which they were drawn: two blocks of 8 tokens, and the rest of a third."""
    options: dict[str, Any] = {"decoder": "left_to_right", "temperature": 1.0, "seed": 4}
    out = dlm.generate(
        model, [[5, 6, 7, 8]], gen_length=19, stop_at_eos=False, cfg_scale=cfg_scale, **options
    )
    assert out.path_log_probability is not None
    chain: dict[str, Any] = {"estimator": "chain", "order": "left_to_right", "samples": 1}
    found = dlm.log_likelihood(model, [5, 6, 7, 8], out.tokens[0], cfg_scale=cfg_scale, **chain)
    assert found == pytest.approx(out.path_log_probability[0], abs=1e-3)


def test_a_bound_is_the_sum_of_those_of_blocks(model: Model) -> None:
    """Given the blocks before, with noise of its own for each."""
    prompt, answer = [5, 6, 7, 8], [*range(9, 22)]
    whole = dlm.log_likelihood(model, prompt, answer, samples=64, seed=1)
    parts = [
        dlm.log_likelihood(model, prompt + answer[:begin], answer[begin:end], samples=64, seed=1)
        for begin, end in [(0, 8), (8, 13)]
    ]
    assert whole != pytest.approx(sum(parts), abs=1e-3)
    chains = [
        dlm.log_likelihood(model, given, rest, estimator="chain", order="confidence", samples=1)
        for given, rest in [
            (prompt, answer),
            (prompt, answer[:8]),
            (prompt + answer[:8], answer[8:]),
        ]
    ]
    assert chains[0] == pytest.approx(chains[1] + chains[2], abs=1e-4)
    assert whole == pytest.approx(sum(parts), rel=0.1)


@torch.no_grad()
def test_schedules_are_learned_from_what_decoding_sees(model: Model, ministral: Any) -> None:
    """A block in the middle, behind prompts of unlike lengths, before masks it does not see."""
    layout = Layout.of(model, PROMPTS, 15, 5)
    spans = layout.blank(2)
    spans[:, :5], spans[0, 7] = 40, 41
    found = layout.logits(spans, [0, 2], 1)
    for line, row in enumerate((0, 2)):
        prompt, span = PROMPTS[row], spans[line].tolist()
        ids = torch.tensor([[*prompt, *span[:10]]])
        unseen = torch.ones(ids.shape[1], ids.shape[1]).triu(1) * -1e9
        unseen[-5:, -5:] = 0
        expected = ministral(ids, attention_mask=unseen[None, None]).logits[0, -5:]
        torch.testing.assert_close(found[line], expected, atol=1e-4, rtol=0)


def test_certainty_is_not_distilled(model: Model) -> None:
    """Neither are targets decoded for it, nor is there training on such of elsewhere."""
    message = "certainty distillation is not for nemotron-labs-diffusion, .* distil a schedule"
    with pytest.raises(ValueError, match=message):
        check_job(model, PROMPTS, Teacher(gen_length=5))
    with pytest.raises(ValueError, match=message):
        check_targets(model.spec, [Target([5, 6], [7, 8], None)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dlm_paradigm": "autoregressive"}, "dlm_paradigm must be 'bidirectional'"),
        ({"sliding_window": 128}, "sliding_window must be None"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_type 'yarn'"),
        ({"rope_parameters": 3}, "rope_parameters must be of rope_type 'yarn' .*, got 3"),
        ({"rope_parameters": ROTARY | {"attention_factor": 1.0}}, "and hold beta_fast, "),
        ({"rope_parameters": ROTARY | {"factor": 0}}, "factor must be above 0, got 0"),
        ({"rope_parameters": ROTARY | {"mscale": 2.0}}, "mscale_all_dim must equal mscale"),
        (
            {"rope_parameters": ROTARY | {"original_max_position_embeddings": 0}},
            "original_max_position_embeddings must be an int >= 1",
        ),
    ],
    ids=str,
)
def test_what_no_release_has_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NemotronLabsDiffusionConfig(**changes)
    declared = {"architectures": ["NemotronLabsDiffusionModel"], "rope_parameters": ROTARY}
    with pytest.raises(ValueError, match=message):
        NemotronLabsDiffusionConfig.from_dict(declared | changes)


def test_angles_are_those_of_the_file() -> None:
    declared: dict[str, Any] = {"architectures": ["NemotronLabsDiffusionModel"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rope_theta": 1e6}, "rope_parameters must be in the config.json of a Nemotron"),
        ({"rope_parameters": ROTARY, "rope_theta": 1e9}, "rope_theta must be 1000000.0 as in rope"),
        (
            {"rope_parameters": ROTARY, "rope_scaling": ROTARY | {"factor": 2.0}},
            "rope_scaling must be as rope_parameters, got",
        ),
        ({"rope_parameters": ROTARY | {"type": "linear"}}, "rope_parameters must be of rope_type"),
    ]
    for theta in (None, 1e6):
        told = {"rope_parameters": ROTARY, "rope_theta": theta}
        assert NemotronLabsDiffusionConfig.from_dict(declared | told).rope_theta == 1e6
    twice = {"rope_parameters": ROTARY | {"type": "yarn"}, "rope_scaling": ROTARY}
    read = NemotronLabsDiffusionConfig.from_dict(declared | twice)
    assert read.rope_parameters == ROTARY
    assert "rope_scaling" not in read.to_dict()
    for told, message in cases:
        with pytest.raises(ValueError, match=message):
            NemotronLabsDiffusionConfig.from_dict(declared | told)


def test_released_sizes() -> None:
    """Those of the 8B and 3B files, of which the latter turns faster than it was pre-trained to."""
    small: dict[str, Any] = {
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "max_position_embeddings": 4096,
        "rope_parameters": ROTARY | {"factor": 0.25},
    }
    for changes, parameters in [({}, 8_489_553_920), (small, 3_831_659_520)]:
        config = NemotronLabsDiffusionConfig(**changes)
        assert config.rope_theta == 1e6
        assert not {"rope_theta", "rope_scaling"} & config.to_dict().keys()
        assert NemotronLabsDiffusionConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
        with torch.device("meta"):
            network = NemotronLabsDiffusionModel(config)
        assert sum(weight.numel() for weight in network.parameters()) == parameters
