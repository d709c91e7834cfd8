"""Information gain sampling: choices of positions, judged by what the next forward says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.kernels import NoiseKey, gumbels, token_statistics
from dlm.models.model import Model
from dlm.types import StepView

MASK = 7
SEED = 5
Toy = Callable[..., Model]
View = Callable[..., StepView]

rule = settings(max_examples=60, deadline=None)


def look(model: Model, line: list[int]) -> tuple[list[float], list[float], list[int]]:
    """Entropy, confidence and likeliest token of each position, of one forward of one row."""
    tokens = torch.tensor([line])
    hidden = model.hidden(tokens, torch.arange(len(line))[None], None)
    said = token_statistics(
        model.logits(hidden[0]),
        {"confidence", "entropy"},
        suppressed=torch.tensor([token == MASK for token in range(8)]),
        temperature=0.0,
    )
    assert said.confidence is not None
    assert said.entropy is not None
    return said.entropy.tolist(), said.confidence.tolist(), said.sampled.tolist()


def noise(row: int, position: int, forward: int, count: int) -> list[float]:
    """Of every branch at a position of a row."""
    one = (torch.tensor([each]) for each in (row, position, forward))
    return gumbels(NoiseKey(SEED, *one), count)[0].tolist()


def reference(
    model: Model, row: list[int], key: int, block_length: int, budget: list[int], own: Any
) -> tuple[list[int], list[int]]:
    """The end, and forwards of each block: the authors' steps, one candidate after the other."""
    start, made, each = row.index(MASK), 0, []
    row = list(row)
    for number, begin in enumerate(range(start, len(row), block_length)):
        inside = range(begin, min(begin + block_length, len(row)))
        entropy, confidence, token = look(model, row)
        step = 0
        while True:
            open_ = [i for i in inside if row[i] == MASK]
            k = -(-len(open_) // (budget[number] - step)) if budget else 1
            if len(open_) <= k:
                for i in open_:
                    row[i] = token[i]
                made, step = made + 1, step + 1
                break
            sure = [i for i in open_ if confidence[i] >= own["threshold"]]
            if sure:
                for i in sorted(sure, key=lambda i: -confidence[i])[:k]:
                    row[i] = token[i]
                made, step = made + 1, step + 1
                entropy, confidence, token = look(model, row)
                continue
            ranked = []
            for branch in range(own["branches"]):
                score = {
                    i: torch.tensor(confidence[i]) / own["candidate_temperature"]
                    + (torch.tensor(noise(key, i, made, own["branches"])[branch]) if branch else 0)
                    for i in open_
                }
                action = sorted(open_, key=lambda i: -float(score[i]))[:k]
                after = [token[i] if i in action else was for i, was in enumerate(row)]
                then = look(model, after)
                left = [then[0][i] for i in inside if after[i] == MASK]
                cost = sum(entropy[i] for i in sorted(action))
                value = -sum(left) / max(len(left), 1)
                value = value - cost if own["variant"] == "info_gain" else value
                ranked.append((value, after, then))
            _, row, (entropy, confidence, token) = max(ranked, key=lambda each: each[0])
            made, step = made + 1, step + 1
        each.append(step)
    return row, each


@rule
@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=3),
    length=st.integers(1, 10),
    block_length=st.integers(1, 7),
    share=st.sampled_from([None, 1, 2, 3]),
    seed=st.integers(0, 99),
    own=st.fixed_dictionaries(
        {
            "threshold": st.sampled_from([0.3, 0.5, 2.0]),
            "branches": st.integers(2, 5),
            "candidate_temperature": st.sampled_from([0.1, 0.2, 1.0]),
            "variant": st.sampled_from(["info_gain", "lookum"]),
        }
    ),
)
def test_it_is_the_authors_steps(
    toy: Toy,
    prompts: list[list[int]],
    length: int,
    block_length: int,
    share: int | None,
    seed: int,
    own: dict[str, Any],
) -> None:
    """Whose lookahead is the next forward, and the winner's logits those of the next step."""
    model = toy(seed)
    blocks = [min(block_length, length - at) for at in range(0, length, block_length)]
    # A budget that shares out evenly: a forward for so many blanks of each block.
    even = share is not None and all(count % share == 0 for count in blocks)
    budget = [count // share for count in blocks] if even and share else []
    found = dlm.generate(
        model,
        prompts,
        decoder="info_gain",
        decoder_options=own,
        gen_length=length,
        block_length=block_length,
        steps=sum(budget) or None,
        seed=SEED,
        stop_at_eos=False,
    )
    for number, prompt in enumerate(prompts):
        row = [*prompt, *[MASK] * length]
        end, forwards = reference(model, row, number, block_length, budget, own)
        assert found.tokens[number] == end[len(prompt) :]
        assert found.forwards[number] == sum(forwards)


def test_what_is_sure_is_not_tried(toy: Toy) -> None:
    """From no confidence at all on: one row of `low_confidence`, without a branch."""
    shape: dict[str, Any] = {"gen_length": 9, "block_length": 4, "stop_at_eos": False, "steps": 5}
    own = {"threshold": 0.0}
    found = dlm.generate(toy(4), [[1, 2]], decoder="info_gain", decoder_options=own, **shape)
    plain = dlm.generate(toy(4), [[1, 2]], decoder="low_confidence", **shape)
    assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
    assert found.query_tokens == plain.query_tokens


def test_it_takes_the_choice_that_settles_the_other(view_of: View) -> None:
    """Two masks: filling the second leaves nothing open in doubt, the first nearly all."""
    entropy = torch.tensor([[[0.0, 1.5], [0.2, 0.0]]])
    masked = torch.tensor([[[False, True], [True, False]]])
    seen = view_of(masked=torch.ones(1, 2, dtype=torch.bool))
    view = replace(seen, masked=masked, entropy=entropy)
    for cost, variant, wanted in (
        ([0.5, 0.6], "info_gain", 1),  # 2.0 against 0.8
        ([0.1, 1.6], "info_gain", 0),  # 1.6 against 1.8
        ([0.1, 1.6], "lookum", 1),  # 1.5 against 0.2
    ):
        decoder = dlm.decoders.make("info_gain", branches=2, variant=variant)
        state = torch.tensor([cost], dtype=torch.float64)
        assert decoder.choose(state, view).tolist() == [wanted]  # type: ignore[attr-defined]


def test_a_low_temperature_leaves_one_choice(toy: Toy) -> None:
    """And it is that of the most confident position, whose lookahead changes nothing."""
    shape: dict[str, Any] = {"gen_length": 9, "block_length": 9, "stop_at_eos": False}
    own = {"candidate_temperature": 1e-3, "threshold": 2.0, "branches": 4}
    found = dlm.generate(toy(4), [[1, 2]], decoder="info_gain", decoder_options=own, **shape)
    plain = dlm.generate(toy(4), [[1, 2]], decoder="low_confidence", **shape)
    assert found.tokens == plain.tokens
    assert found.forwards == plain.forwards == [9]
    assert plain.query_tokens == [9 * 11]
    assert found.query_tokens == [11 + 4 * 8 * 11]  # nothing to choose from at the first one


def test_a_temperature_of_positions_is_told_the_way(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"must be 0 .* got 0.2; it has a candidate_temperature"):
        dlm.generate(toy(), [[1]], decoder="info_gain", position_temperature=0.2)
    with pytest.raises(ValueError, match=r"must be 0 .*, got 0.2$"):
        dlm.generate(toy(), [[1]], decoder="ssd", position_temperature=0.2)


def test_noise_of_branches_is_gumbel_and_independent() -> None:
    positions = torch.arange(4000)
    key = NoiseKey(3, torch.zeros_like(positions), positions, torch.zeros_like(positions))
    drawn = gumbels(key, 5)
    assert drawn.shape == (4000, 5)
    assert torch.equal(gumbels(key, 3), drawn[:, :3])
    mean, spread = drawn.double().mean(0), drawn.double().std(0)
    assert mean.tolist() == pytest.approx([0.5772] * 5, abs=0.09)
    assert spread.tolist() == pytest.approx([1.2825] * 5, abs=0.09)
    both = torch.cat((drawn, dlm.kernels.gumbel(key)[:, None]), 1).double()
    apart = torch.corrcoef(both.T) - torch.eye(6, dtype=torch.float64)
    assert apart.abs().max() < 0.08
