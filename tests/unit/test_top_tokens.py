"""`return_top_tokens`: what else might have been written in the place of each token."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS, LowConfidence
from dlm.decoders.base import Stateless
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
PROMPTS = [[1, 2, 3, 4, 3, 2, 1], [2], [3, 1, 4]]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_token_itself_has_its_own_log_probability(
    toy: Toy, decoding: Callable[[str], dict[str, Any]], decoder: str, temperature: float
) -> None:
    """And nothing else changes, whatever lists a decoder reads itself."""
    options = {**decoding(decoder), "gen_length": 11, "block_length": 4, "temperature": temperature}
    options["return_trajectory"] = True
    plain = dlm.generate(toy(5), PROMPTS, **options)
    assert plain.top_tokens is None
    for count in (1, 3, 100):
        out = dlm.generate(toy(5), PROMPTS, return_top_tokens=count, **options)
        assert (out.tokens, out.forwards) == (plain.tokens, plain.forwards)
        assert out.top_tokens is not None
        assert out.log_probabilities is not None
        for row, tops in enumerate(out.top_tokens):
            assert len(tops) == len(out.tokens[row])
            for token, own, top in zip(
                out.tokens[row], out.log_probabilities[row], tops, strict=True
            ):
                assert bool(top) == (not math.isnan(own))
                assert len(top) <= min(count, 7)  # the mask has no probability
                assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
                assert not top or count < 7 or token in dict(top) or own == -math.inf
                assert dict(top).get(token, own) == pytest.approx(own, nan_ok=True)


@dataclass(frozen=True, slots=True)
class Likely(Stateless):
    """Commits all, and notes how many of the likeliest tokens it is shown."""

    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"top_tokens"})
    top: ClassVar[int] = 2
    seen: ClassVar[list[torch.Size]] = []

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        self.seen.extend(view.want(f"top_{name}").shape for name in ("tokens", "probabilities"))
        return None, Decision(view.masked)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_decoder_reads_as_many_as_it_declares(toy: Toy, count: int) -> None:
    Likely.seen.clear()
    out = dlm.generate(toy(1), [[1]], gen_length=3, decoder=Likely(), return_top_tokens=count)
    assert Likely.seen == [(1, 3, 2)] * 2
    assert [len(top) for top in (out.top_tokens or [[]])[0]] == [count] * 3 * bool(count)


def laws(options: dict[str, Any], logits: Tensor, spec: Any) -> Tensor:
    """The law that tokens are told by, of float logits [V]."""
    wide = logits.double().clone()
    for token, value in (options.get("logit_bias") or {}).items():
        wide[token] += value
    wide[[*spec.banned, *options.get("suppress_tokens", ())]] = -torch.inf
    if options.get("confidence_eos_eot_inf"):
        wide[[*spec.stop_ids]] = -torch.inf
    if options.get("decoder") == "dream":
        wide /= options.get("temperature") or 1.0
        kept = wide.topk(options.get("top_k", len(wide))).indices
        wide = torch.full_like(wide, -torch.inf).index_copy(0, kept, wide[kept])
    return wide.log_softmax(0)


@pytest.mark.parametrize("options", [
    {}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 4}, {"decoder": "left_to_right"},
    {"decoder": "threshold", "decoder_options": {"threshold": 0.003}, "temperature": 1.0},
    {"decoder": "klass", "logit_bias": {7: 2.0, 90: -3.0}},
    {"decoder": "dream", "temperature": 0.7, "top_k": 4}, {"decoder": "dream", "top_k": 3},
    {"confidence_eos_eot_inf": True}, {"suppress_tokens": [*range(0, 512, 2)]},
], ids=str)  # fmt: skip
def test_they_are_those_of_the_network(golden: Model, options: dict[str, Any]) -> None:
    """Asked about the canvas as the forward saw it."""
    usual: dict[str, Any] = {"gen_length": 7, "block_length": 4, "stop_at_eos": False, "seed": 1}
    prompts = [[1, 2, 3], [9] * 5]
    out = dlm.generate(
        golden, prompts, return_top_tokens=5, return_order=True, return_trajectory=True,
        **{**usual, **options},
    )  # fmt: skip
    assert out.order is not None
    assert out.trajectory is not None
    assert out.top_tokens is not None
    for row, prompt in enumerate(prompts):
        for at, step in enumerate(out.order[row]):
            canvas = out.trajectory[row].canvases[step].tolist()
            logits = golden.raw_logits(torch.tensor([[*prompt, *canvas]]))[0, len(prompt) + at]
            law = laws({"decoder": None, **options}, logits, golden.spec)
            best = law.topk(5)
            kept = int((best.values > -torch.inf).sum())
            tokens, values = zip(*out.top_tokens[row][at], strict=True)
            assert [*tokens] == best.indices[:kept].tolist()
            assert [*values] == pytest.approx(best.values[:kept].tolist(), abs=1e-4)


def test_what_was_given_has_none(toy: Toy) -> None:
    out = dlm.infill(toy(1), [[1, 7, 2, 7, 7], [7, 3]], return_top_tokens=2)
    assert out.top_tokens is not None
    assert [[len(top) for top in row] for row in out.top_tokens] == [[0, 2, 0, 2, 2], [2, 0]]


def test_what_it_must_be(toy: Toy) -> None:
    with pytest.raises(ValueError, match="return_top_tokens is for generate"):
        dlm.stream(toy(1), [1], gen_length=4, return_top_tokens=2)
    for wrong in (-1, True, 1.0):
        with pytest.raises(ValueError, match="return_top_tokens must be an int >= 0, got"):
            dlm.generate(toy(1), [[1]], return_top_tokens=wrong)  # type: ignore[arg-type]


def test_a_decoder_that_declares_none_sees_none(toy: Toy) -> None:
    class Asks(LowConfidence):
        def step(self, state: None, view: StepView) -> tuple[None, Decision]:
            assert view.top_tokens is None
            assert view.top_probabilities is None
            return super().step(state, view)

    out = dlm.generate(toy(1), [[1]], decoder=Asks(), gen_length=4, return_top_tokens=3)
    assert out.top_tokens is not None
