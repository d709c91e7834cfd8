"""Examples of rules of the engine that only show in corners."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dlm
from dlm.estimators import Estimator
from dlm.kernels import NoiseKey, noise, uniform
from dlm.models.model import Model

Toy = Callable[..., Model]


def test_stop_tokens_have_the_largest_entropy(toy: Toy) -> None:
    """Where they are to be committed last, by a decoder that ranks by entropy."""
    table = torch.full((97, 8), -9.0)
    table[::2, 6], table[::2, 1] = 9.0, 8.0
    table[1::2, 2] = table[1::2, 3] = 9.0
    model, mixed = toy(table), 0
    options: dict[str, Any] = {"decoder": "entropy", "gen_length": 4, "stop_at_eos": False}
    for prompt in range(5):
        drawn = model.raw_logits(torch.tensor([[prompt, 7, 7, 7, 7]]))[0, 1:].argmax(-1).tolist()
        if len(set(drawn)) > 1:
            mixed += 1
            out = dlm.generate(
                model, [[prompt]], confidence_eos_eot_inf=True, return_trajectory=True, **options
            )
            assert out.trajectory is not None
            assert out.trajectory[0].commits[0].token == 2
    assert mixed


def test_a_window_begins_where_its_block_does(toy: Toy) -> None:
    """On the grid of attention, in front of the end of the prompt."""
    model = toy(0, block_size=8)
    out = dlm.generate(model, [[1, 2, 3, 4, 5, 1]], gen_length=2, stop_at_eos=False)
    assert model.spec.mask_id not in out.tokens[0]


def test_uniform_noise_is_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    word, one = torch.tensor([0xFFFFFFFF]), torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(noise, "_position_word", lambda *given: (word, word))
    assert float(uniform(NoiseKey(0, one, one, one))) < 1


def test_stop_tokens_that_come_last_are_no_tokens_to_sample(toy: Toy) -> None:
    options: dict[str, Any] = {"gen_length": 3, "suppress_tokens": [0, 1, 2, 3, 4]}
    assert dlm.generate(toy(0), [[1]], **options).tokens == [[6, 6, 6]]
    with pytest.raises(ValueError, match="beside the stop tokens of confidence_eos_eot_inf"):
        dlm.generate(toy(0), [[1]], confidence_eos_eot_inf=True, **options)


def test_answers_fit_with_what_closes_a_row(toy: Toy) -> None:
    with pytest.raises(ValueError, match="must fit the model's 4 positions, got 5"):
        dlm.log_likelihood(toy(0, max_length=4, suffix=(1,)), [1, 2], [3, 4])


def test_blocks_of_an_answer_have_noise_of_their_own() -> None:
    how = Estimator("monte_carlo", 8, 4, "random", 0, torch.device("cpu"))
    whole, rest = (how.noise(begin, 3 - begin, torch.arange(5)) for begin in (0, 1))
    assert torch.equal(rest, whole[:, 1:])
