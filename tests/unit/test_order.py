"""`return_order`: which forward committed each token."""

from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.trajectory import Trajectory

Toy = Callable[..., Model]
PROMPTS = [[1, 2, 3, 4, 3, 2, 1], [2], [3, 1, 4]]


def last_to_write(row: Trajectory, tokens: list[int]) -> list[int]:
    """Of each token the last forward that wrote there, if it wrote that token; else -1."""
    found = [-1] * len(tokens)
    for change in sorted([*row.commits, *row.edits]):
        wrote = change.token == tokens[change.position]
        found[change.position] = change.step if wrote else -1
    for change in row.remasks:
        assert found[change.position] != change.step
        if found[change.position] < change.step:
            found[change.position] = -1
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize("stop_at_eos", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
def test_order_is_that_of_the_trajectory(toy: Toy, decoder: str, stop_at_eos: bool) -> None:
    options: dict[str, Any] = {"decoder": decoder, "gen_length": 11, "block_length": 4}
    options |= {"temperature": 1.0, "stop_at_eos": stop_at_eos, "seed": 2}
    out = dlm.generate(
        toy(5), PROMPTS, return_order=True, return_trajectory=True, **options
    )  # fmt: skip
    assert out.order is not None
    assert out.trajectory is not None
    for order, row, tokens in zip(out.order, out.trajectory, out.tokens, strict=True):
        assert order == last_to_write(row, tokens)
    quiet = dlm.generate(toy(5), PROMPTS, return_order=True, **options)
    assert (quiet.order, quiet.tokens) == (out.order, out.tokens)


@pytest.mark.parametrize("decoder", ["low_confidence", "threshold", "klass", "wino"])
def test_what_was_filled_over_a_token_has_none(toy: Toy, decoder: str) -> None:
    """But for end of text that a forward wrote there itself."""
    options: dict[str, Any] = {"gen_length": 11, "block_length": 6, "temperature": 1.0}
    options |= {"decoder": decoder, "return_order": True, "return_trajectory": True}
    options["logit_bias"] = {6: 1.0}  # of which some are end of text
    filled = kept = 0
    for seed in range(6):
        out = dlm.generate(toy(5), PROMPTS, seed=seed, **options)
        assert out.order is not None
        assert out.trajectory is not None
        for order, row, tokens in zip(out.order, out.trajectory, out.tokens, strict=True):
            assert order == last_to_write(row, tokens)
            end = next((n + 1 for n, token in enumerate(tokens) if token in (5, 6)), len(tokens))
            assert min(order[:end]) >= 0
            was = {change.position: change.token for change in row.commits}
            filled += sum(was.get(at, 6) != 6 for at in range(end, len(tokens)))
            kept += sum(at >= 0 for at in order[end:])
    assert filled, "nothing was filled over, or the test shows nothing"
    assert kept


@pytest.mark.parametrize("decoder", ["low_confidence", "entropy", "wino"])
def test_snapshots_tell_what_they_fill_over(toy: Toy, decoder: str) -> None:
    """With it they tell the order, as a forward may write a token and fill over it."""
    options: dict[str, Any] = {"gen_length": 12, "block_length": 6, "temperature": 1.0}
    options |= {"decoder": decoder, "logit_bias": {6: 1.0}}
    options |= {} if decoder == "wino" else {"steps": 4}
    filled = 0
    for seed in range(8):
        born, seen = [-1] * 12, [7] * 12
        for one in dlm.stream(toy(5), [1, 2], seed=seed, **options):
            same = zip(born, seen, one.tokens, strict=True)
            born = [number if was == now else -1 for number, was, now in same]
            for place in {*one.committed, *one.edited}.difference(one.filled):
                born[place] = one.forward - 1
            filled, seen = filled + len(one.filled), one.tokens
        assert [born] == dlm.generate(toy(5), [1, 2], seed=seed, return_order=True, **options).order
    assert filled or decoder == "wino", "nothing was filled over, or the test shows nothing"


def test_order_of_an_infill_leaves_given_tokens_out(toy: Toy) -> None:
    out = dlm.infill(toy(1), [[1, 7, 2, 7, 7], [7, 3]], decoder="left_to_right", return_order=True)
    assert out.order == [[-1, 0, -1, 1, 2], [0, -1]]


def test_order_is_kept_on_request_only(toy: Toy) -> None:
    assert dlm.generate(toy(1), [[1]], gen_length=4).order is None
    with pytest.raises(ValueError, match="return_order is for generate"):
        dlm.stream(toy(1), [1], gen_length=4, return_order=True)
    with pytest.raises(ValueError, match="return_order must be True or False, got 'no'"):
        dlm.generate(toy(1), [[1]], return_order="no")  # type: ignore[arg-type]
