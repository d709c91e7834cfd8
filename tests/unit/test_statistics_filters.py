"""Top-k, top-p and min-p: which tokens they leave to be drawn."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.kernels import (
    NoiseKey,
    categorical,
    filters,
    token_statistics,
    token_statistics_reference,
)


def make_key(num_rows: int) -> NoiseKey:
    count = torch.arange(num_rows)
    return NoiseKey(0, count, count, torch.zeros_like(count))


def random_logits(num_rows: int, vocabulary: int, scale: float) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return scale * torch.randn(num_rows, vocabulary, generator=source)


def distinct(tokens: Tensor) -> list[int]:
    return sorted(set(tokens.tolist()))


def test_top_k_keeps_exactly_k_equal_tokens() -> None:
    sampled = categorical(torch.zeros(3000, 2500), temperature=1.0, top_k=40, key=make_key(3000))[0]
    assert distinct(sampled) == list(range(40))


def test_top_p_keeps_the_shortest_prefix_that_reaches_p() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().expand(2000, -1)
    for top_p, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.875, 3), (0.876, 4)):
        sampled = categorical(logits, temperature=1.0, top_p=top_p, key=make_key(2000))[0]
        assert distinct(sampled) == list(range(kept))
    flat = torch.zeros(1, 4096).expand(9000, -1)  # the prefix ends where a tile does
    sampled = categorical(flat, temperature=1.0, top_p=0.5, key=make_key(9000))[0]
    assert int(sampled.max()) == 2047
    assert len(distinct(sampled)) > 1900


def test_top_p_works_on_the_survivors_of_top_k() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(2000, -1)
    drawn = {
        top_k: categorical(logits, temperature=1.0, top_k=top_k, top_p=0.6, key=make_key(2000))[0]
        for top_k in (2, 3, 4)
    }
    # 0.4 / 0.7 < 0.6 keeps two of two; 0.4 / 0.9 keeps two of three; 0.4 and 0.3 of four.
    assert all(distinct(tokens) == list(range(2)) for tokens in drawn.values())
    narrow = categorical(logits, temperature=1.0, top_k=2, top_p=0.57, key=make_key(2000))[0]
    assert distinct(narrow) == list(range(1))


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    """At T = 1/2 shares are squared: 1, 1/4, 1/16 of the largest."""
    logits = torch.tensor([[0.25, 0.5, 0.125, 0.125]]).log().expand(2000, -1)
    options: dict[str, Any] = {"temperature": 0.5, "key": make_key(2000)}
    cases = ((0, [0, 1, 2, 3]), (0.06, [0, 1, 2, 3]), (0.07, [0, 1]), (0.26, [1]), (1, [1]))
    for min_p, kept in cases:
        assert distinct(categorical(logits, min_p=min_p, **options)[0]) == kept
    assert distinct(categorical(logits, min_p=0.07, top_k=1, **options)[0]) == [1]
    assert distinct(categorical(logits, min_p=0.06, top_p=0.95, **options)[0]) == [0, 1, 2]


def test_a_nucleus_beyond_the_shortlist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full ranking and the shortlist cut alike, so a row ignores which its block took."""
    logits = torch.cat((random_logits(8, 9000, scale=3.0), random_logits(8, 9000, scale=0.01)))
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.97, "key": make_key(16)}
    both = token_statistics(logits, (), **options).sampled
    for lists in ((), (9000,), (64,)):
        monkeypatch.setattr(filters, "SHORTLISTS", lists)
        assert torch.equal(token_statistics(logits, (), **options).sampled, both)
    assert torch.equal(token_statistics_reference(logits, (), **options).sampled, both)
