"""Suppressed tokens that are prepared once for many calls, and what else a loop makes once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dlm
from dlm.kernels import (
    STATISTICS,
    NoiseKey,
    Suppressed,
    token_statistics,
    token_statistics_reference,
)
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import AnyDecoder

CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top": 3},
    {"temperature": 0.7, "top_k": 5, "law": "sampling"},
)


@pytest.mark.parametrize("vocabulary", [5, 1024, 2500])
@pytest.mark.parametrize("options", CALLS)
def test_a_mask_and_what_is_made_of_it_are_one(vocabulary: int, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, vocabulary, generator=generator)
    banned = torch.rand(vocabulary, generator=generator) < 0.3
    banned[0] = False
    rows = torch.arange(6)
    key = NoiseKey(3, rows, rows, rows)
    tokens = torch.full((6,), vocabulary - 1)
    for call in (token_statistics, token_statistics_reference):
        plain, prepared = (
            call(logits, STATISTICS, key=key, tokens=tokens, suppressed=each, **options)
            for each in (banned, Suppressed.of(banned))
        )
        for name in (*STATISTICS, "sampled", "top_tokens"):
            one, two = getattr(plain, name), getattr(prepared, name)
            assert (one is None and two is None) or torch.equal(one, two)


@pytest.mark.parametrize(
    ("banned", "message"),
    [
        (torch.ones(8).bool(), "suppressed must leave a token, got all of 8"),
        (torch.zeros(9).bool(), r"suppressed must be torch.bool of shape \[8\], got .* \[9\]"),
        (torch.zeros(8), r"suppressed must be torch.bool .* got torch.float32 \[8\]"),
    ],
)
def test_what_is_prepared_is_held_to_the_same_rules(banned: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_statistics(torch.zeros(2, 8), (), suppressed=Suppressed.of(banned))


def test_no_forward_reads_declarations(
    toy: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many forwards there are, the decoder is asked what it declares as many times."""
    asked: list[AnyDecoder] = []
    of = Traits.of

    def counted(decoder: AnyDecoder) -> Traits:
        asked.append(decoder)
        return of(decoder)

    monkeypatch.setattr(Traits, "of", counted)
    found = []
    for steps in (1, 8):
        asked.clear()
        out = dlm.generate(toy(0), [[1, 2]], gen_length=8, steps=steps, stop_at_eos=False)
        assert out.forwards == [steps]
        found.append(len(asked))
    assert found[0] == found[1]
