"""Lists of the likeliest tokens: order, ties at the end of the list, holes and probabilities.

Shapes: N rows, V vocabulary.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.kernels import NoiseKey, tiles, token_statistics, token_statistics_reference
from dlm.kernels.filters import likeliest

SIZES = (1, 2, 7, 1023, 1024, 1025, 2049, 3000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random_logits(num_rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def lists(logits: Tensor, top: int, **options: Tensor) -> tuple[Tensor, Tensor]:
    got = token_statistics(logits, (), top=top, **options)  # type: ignore[arg-type]
    assert got.top_tokens is not None
    assert got.top_probabilities is not None
    return got.top_tokens, got.top_probabilities


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top", [1, 2, 3, 40, 10_000])
def test_lists_match_the_reference(vocabulary: int, dtype: torch.dtype, top: int) -> None:
    """Ranks exactly, probabilities to the error of float32; bfloat16 alone gives ties enough."""
    logits = random_logits(60, vocabulary).to(dtype)
    logits[::2] = logits[::2].round()
    logits[5, ::2] = -torch.inf
    logits[6] = -torch.inf
    logits[7, : vocabulary - 1] = -torch.inf
    scale = torch.linspace(0.5, 2, 60)
    tokens, p = lists(logits, top, scale=scale)
    exact = token_statistics_reference(logits, (), top=top, scale=scale)
    assert exact.top_tokens is not None
    assert exact.top_probabilities is not None
    assert tokens.dtype == torch.int64
    assert p.dtype == torch.float32
    assert tokens.shape == p.shape == (60, min(top, vocabulary))
    assert torch.equal(tokens, exact.top_tokens)
    plain = (logits.float() * scale[:, None]).softmax(1).nan_to_num(1 / vocabulary)
    allowed = (plain.gather(1, tokens) - exact.top_probabilities).abs().max()
    assert (p - exact.top_probabilities).abs().max() <= 2 * allowed + 2e-7


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_equals_come_by_id_wherever_the_list_ends(data: st.DataObject) -> None:
    """Few levels over many tokens: a stable sort is the rule."""
    vocabulary = data.draw(st.integers(1, 60))
    levels = data.draw(st.lists(st.integers(0, 3), min_size=vocabulary, max_size=vocabulary))
    values = torch.tensor([levels, levels[::-1]]).float()
    count = data.draw(st.integers(1, vocabulary))
    order = values.sort(dim=1, descending=True, stable=True)
    ranked, ids = likeliest(values, count)
    assert torch.equal(ids, order.indices[:, :count])
    assert torch.equal(ranked, order.values[:, :count])


@pytest.mark.parametrize("top", [1, 2, 3, 5, 700, 5000])
@pytest.mark.parametrize("block", [1, 30_000, 1 << 22])
def test_equals_in_several_tiles(top: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", block)
    logits = torch.zeros(8, 5000)
    logits[1, 4999] = 1
    logits[2, [4100, 1023, 1024]] = 1
    logits[3, 2048:] = 1
    logits[4, ::1000] = 1
    logits[5, ::1000] = -0.0
    logits[6:] = random_logits(2, 5000).round()
    assert torch.equal(
        lists(logits, top)[0], logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    )


def test_equal_probabilities_far_down_keep_the_order_of_the_logits() -> None:
    """e**-200 and e**-300 are both 0 in float32, and still the first is likelier."""
    tokens, p = lists(torch.tensor([[-300.0, -200.0, 0.0, -torch.inf]]), 4)
    assert tokens.tolist() == [[2, 1, 0, 3]]
    assert p.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("vocabulary", [6, 1500])
def test_suppressed_tokens_come_last(vocabulary: int) -> None:
    logits = random_logits(3, vocabulary)
    suppressed = torch.arange(vocabulary) % 3 == 0
    logits[0, suppressed] = torch.nan
    logits[1, 1] = -torch.inf
    logits[2] = -torch.inf
    tokens, p = lists(logits, vocabulary, suppressed=suppressed)
    kept = int((~suppressed).sum())
    assert not suppressed[tokens[:, :kept]].any()
    assert torch.equal(tokens[:, kept:], suppressed.nonzero()[:, 0].expand(3, -1))
    assert torch.equal(p[:, kept:], torch.zeros(3, vocabulary - kept))
    assert tokens[1, kept - 1] == 1
    torch.testing.assert_close(p[2, :kept], torch.full((kept,), 1 / kept))
    torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_sampling_does_not_change_the_list() -> None:
    logits = random_logits(10, 2000)
    expected = lists(logits, 5)
    got = token_statistics(logits, ("margin",), top=5, top_k=2, top_p=0.5)
    assert got.top_tokens is not None
    assert got.top_probabilities is not None
    assert torch.equal(got.top_tokens, expected[0])
    assert torch.equal(got.top_probabilities, expected[1])
    assert torch.equal(expected[0][:, 0], logits.argmax(1))
    assert token_statistics(logits, ("margin",)).top_tokens is None


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_probabilities_are_of_the_law_that_is_measured(temperature: float) -> None:
    """Those of dropped tokens 0; the likeliest ones are the same."""
    logits, rows = random_logits(10, 2000), torch.arange(10)
    key = NoiseKey(rows, rows, rows, rows)
    options: dict[str, Any] = {"temperature": temperature, "key": key, "law": "sampling"}
    got = token_statistics(logits, ("confidence",), top=5, top_k=3, **options)
    assert got.top_tokens is not None
    assert got.top_probabilities is not None
    assert torch.equal(got.top_tokens, lists(logits, 5)[0])
    kept = logits.double().div(temperature or 1.0).sort(dim=1, descending=True).values[:, :3]
    expected = torch.nn.functional.pad(kept.softmax(1), (0, 2))
    torch.testing.assert_close(got.top_probabilities.double(), expected, rtol=1e-5, atol=1e-7)
    own = (got.top_tokens == got.sampled[:, None]).nonzero(as_tuple=True)
    assert got.confidence is not None
    assert torch.equal(got.top_probabilities[own], got.confidence[own[0]])
