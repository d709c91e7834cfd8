"""Sub-blocks that end with a delimiter: AdaBlock."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import AdaptiveBlock
from dlm.models.model import Model
from dlm.types import Decision, Facts, StepView

History = list[tuple[StepView, Decision]]
Script = Callable[..., History]
Bind = Callable[..., Facts]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

rule = settings(max_examples=80, deadline=None)


def reference(
    said: list[tuple[list[float], list[int]]],
    threshold: float,
    usual: int,
    enough: float,
    ids: tuple[int, ...],
) -> list[list[int]]:
    """What each forward commits: the authors' loop over one row, told again."""
    width = len(said[0][0])
    masked, begin, end, made = [True] * width, 0, 0, []
    for confidence, sampled in said:
        if not any(masked[begin:end]):
            begin = end
            near = range(begin, begin + min(int(0.25 * width), width - begin))
            ends = [i for i in near if sampled[i] in ids]
            best = max(ends, key=lambda i: confidence[i], default=None)  # the first of those
            if best is not None and confidence[best] >= enough:
                end = best + 1
            else:
                end = begin + min(usual, width - begin)
        inside = [i for i in range(begin, end) if masked[i]]
        surest = max(inside, key=lambda i: confidence[i])
        chosen = [i for i in inside if confidence[i] >= threshold or i == surest]
        for i in chosen:
            masked[i] = False
        made.append(chosen)
        if not any(masked):
            break
    return made


@rule
@given(
    data=st.data(),
    threshold=st.sampled_from([0.0, 0.5, 0.875, 2.0]),
    usual=st.integers(1, 9),
    enough=st.sampled_from([0.0, 0.5, 0.75, 2.0]),
    ids=st.sampled_from([(), (3,), (1, 4)]),
)
def test_it_is_the_authors_loop(
    script: Script,
    facts: Bind,
    data: st.DataObject,
    threshold: float,
    usual: int,
    enough: float,
    ids: tuple[int, ...],
) -> None:
    """Forward by forward, two rows at a time, whose sub-blocks part company."""
    width = data.draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    said: list[tuple[torch.Tensor, torch.Tensor]] = []

    def speak(number: int, view: StepView) -> Mapping[str, Any]:
        confidence = torch.randint(9, (2, width), generator=generator) / 8  # with ties
        said.append((confidence, torch.randint(5, (2, width), generator=generator)))
        return {"confidence": confidence, "sampled": said[-1][1]}

    decoder = AdaptiveBlock(threshold, usual, enough, ids).bind(facts())
    seen = script(decoder, speak, torch.ones(2, width, dtype=torch.bool))
    for row in range(2):
        each = [(sure[row].tolist(), tokens[row].tolist()) for sure, tokens in said]
        found = [decision.commit[row].nonzero()[:, 0].tolist() for _, decision in seen]
        assert [some for some in found if some] == reference(each, threshold, usual, enough, ids)


def test_what_is_given_ends_nothing_and_a_budget_reaches_beyond(
    view_of: View, picked: Picked, facts: Bind
) -> None:
    decoder = AdaptiveBlock(0.5, 2, 0.3, (3,), look=1.0).bind(facts())
    case: dict[str, Any] = {"confidence": [0.1, 0.9, 0.4, 0.9, 0.6], "sampled": [1, 3, 3, 1, 1]}
    state = decoder.init_state(1, 5)
    view = view_of(**case, masked=[True, False, True, True, True])
    end, decision = decoder.step(state, view)
    assert (end.tolist(), picked(decision.commit)) == ([3], [2])
    _, decision = decoder.step(state, view_of(**case, quota=4))
    assert picked(decision.commit) == [0, 1, 3, 4]  # all of [0, 2), and the best behind it


def test_it_has_to_be_bound(view_of: View) -> None:
    with pytest.raises(ValueError, match="adaptive_block must be bound to a model"):
        AdaptiveBlock().step(torch.zeros(1), view_of(confidence=[0.5]))


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"sub_block_length": 99}, "threshold"),
        ({"sub_block_length": 1, "threshold": 2.0}, "left_to_right"),
    ],
)
def test_without_delimiters_it_is_what_it_holds(
    golden: Model, options: dict[str, Any], other: str
) -> None:
    usual: dict[str, Any] = {"gen_length": 20, "block_length": None, "temperature": 1.0}
    options = {"delimiter_ids": [], **options}
    found = dlm.generate(
        golden, [[1, 2], [3]], decoder="adaptive_block", decoder_options=options, **usual
    )
    assert found.tokens == dlm.generate(golden, [[1, 2], [3]], decoder=other, **usual).tokens
