"""Lookahead parallel decoding: LoPA's rounds over branches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.kernels import token_statistics
from dlm.models.model import Model

MASK = 7
Toy = Callable[..., Model]

rule = settings(max_examples=60, deadline=None)


def look(model: Model, line: list[int], score: str) -> tuple[list[float], list[float], list[int]]:
    """Certainty, confidence and likeliest token of each position, of one forward of one row."""
    tokens = torch.tensor([line])
    hidden = model.hidden(tokens, torch.arange(len(line))[None], None)
    said = token_statistics(
        model.logits(hidden[0]),
        {"confidence", score},
        suppressed=torch.tensor([token == MASK for token in range(8)]),
        temperature=0.0,
    )
    value = getattr(said, score)
    assert said.confidence is not None
    certainty = -value if score == "entropy" else value
    return certainty.tolist(), said.confidence.tolist(), said.sampled.tolist()


def reference(
    model: Model, prompt: list[int], length: int, block_length: int, own: dict[str, Any]
) -> tuple[list[list[int]], list[int]]:
    """What each round begins with, and the end: the authors' loop over branches, told again."""
    row, seen = [*prompt, *[MASK] * length], []
    for begin in range(len(prompt), len(row), block_length):
        inside = range(begin, min(begin + block_length, len(row)))
        tries: list[tuple[dict[int, int], float]] = [({}, 1.0)]
        while any(row[i] == MASK for i in inside):
            seen.append(row[len(prompt) :])
            ranked = []
            for more, created in [*tries[1:], tries[0]]:  # the anchor last
                line = [more.get(i, token) for i, token in enumerate(row)]
                made = look(model, line, own["score"])
                left = sorted(made[0][i] for i in inside if line[i] == MASK)
                worst = left[: max(1, int(len(left) * own["share"]))]
                future = sum(worst) / len(worst) if worst else 1.0
                ranked.append((own["alpha"] * created + (1 - own["alpha"]) * future, line, made))
            _, row, (certainty, confidence, token) = max(ranked, key=lambda each: each[0])
            open_ = [i for i in inside if row[i] == MASK]
            best_first = sorted(open_, key=lambda i: -certainty[i])
            chosen = [i for i in open_ if confidence[i] >= own["threshold"]] or best_first[:1]
            rest = [i for i in best_first if i not in chosen]
            for i in chosen:
                row[i] = token[i]
            tries = [({}, 1.0)]
            tries += [({i: token[i]}, certainty[i]) for i in rest[: own["branches"] - 1]]
    return seen, row[len(prompt) :]


@rule
@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=3),
    length=st.integers(1, 12),
    block_length=st.integers(1, 8),
    seed=st.integers(0, 99),
    own=st.fixed_dictionaries(
        {
            "threshold": st.sampled_from([0.3, 0.5, 0.7, 0.9]),
            "branches": st.integers(1, 5),
            "score": st.sampled_from(["confidence", "margin", "entropy"]),
            "alpha": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
            "share": st.sampled_from([0.1, 0.5, 1.0]),
        }
    ),
)
def test_it_is_the_authors_loop(
    toy: Toy,
    prompts: list[list[int]],
    length: int,
    block_length: int,
    seed: int,
    own: dict[str, Any],
) -> None:
    """Canvas by canvas, several rows at a time."""
    model = toy(seed)
    shape: dict[str, Any] = {"gen_length": length, "block_length": block_length}
    found = dlm.generate(
        model,
        prompts,
        decoder="lopa",
        decoder_options=own,
        stop_at_eos=False,
        return_trajectory=True,
        **shape,
    )
    assert found.trajectory is not None
    for number, prompt in enumerate(prompts):
        seen, end = reference(model, prompt, length, block_length, own)
        assert found.trajectory[number].canvases.tolist() == seen
        assert found.tokens[number] == end


def test_branches_save_forwards_and_cost_queries(toy: Toy) -> None:
    """Each forward keeps one more token of the branch it chose; the first has none to evaluate."""
    plain, ahead = (
        dlm.generate(
            toy(3),
            [[1, 2]],
            decoder="lopa",
            decoder_options={"branches": branches, "threshold": 2.0, "alpha": 0.0},
            gen_length=12,
            block_length=None,
            stop_at_eos=False,
        )
        for branches in (1, 4)
    )
    assert plain.forwards == [12]
    assert ahead.forwards[0] < 12
    assert ahead.query_tokens[0] == 14 + 4 * 14 * (ahead.forwards[0] - 1)
    assert plain.query_tokens[0] == 14 * 12


def test_a_share_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share must be above 0, got 0$"):
        dlm.decoders.make("lopa", share=0)
