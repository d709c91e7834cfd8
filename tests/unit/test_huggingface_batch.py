"""Padding on either side comes off, and prompts stay in front as they came."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.huggingface.batch import checked, prompts, sequences

IDS = torch.tensor([[9, 9, 1, 2], [3, 4, 5, 6], [7, 8, 9, 9]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_rows_lose_their_padding(dtype: torch.dtype) -> None:
    assert prompts(IDS, MASK.to(dtype), 9) == [[1, 2], [3, 4, 5, 6], [7, 8]]


def test_without_a_mask_every_token_counts() -> None:
    assert prompts(IDS, None, None) == IDS.tolist()
    assert prompts(IDS[:1], None, 9) == IDS[:1].tolist()


@pytest.mark.parametrize("rows", [[0, 1], [1, 2]], ids=["left", "right"])
def test_a_forgotten_mask_is_noticed(rows: list[int]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask must be given .* pad_token_id 9"):
        prompts(IDS[rows], None, 9)


@pytest.mark.parametrize(
    "mask",
    [[[1, 0, 1, 1]], [[0, 0, 0, 0]], [[2, 1, 1, 1]], [[1, 1, 1]]],
    ids=["hole", "empty", "weights", "shape"],
)
def test_bad_masks(mask: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="attention_mask must"):
        prompts(torch.tensor([[1, 2, 3, 4]]), torch.tensor(mask), None)


def test_a_mask_is_a_tensor() -> None:
    mask: Any = [[1, 1, 1, 1]]
    with pytest.raises(ValueError, match=r"attention_mask must be a tensor \[B, P\], got \[\["):
        prompts(torch.tensor([[1, 2, 3, 4]]), mask, None)


@pytest.mark.parametrize(
    "ids",
    [torch.tensor([1, 2]), torch.tensor([[1.0]]), torch.empty(1, 0, dtype=torch.int64), [[1, 2]]],
    ids=["one row", "floats", "empty", "list"],
)
def test_bad_inputs(ids: Any) -> None:
    with pytest.raises(ValueError, match="input_ids must"):
        checked(ids, 0, CPU)


def test_nothing_begins_with_begin_of_text() -> None:
    assert torch.equal(checked(None, 3, CPU), torch.tensor([[3]]))
    assert checked(None, 3, torch.device("meta")).is_meta
    with pytest.raises(ValueError, match="input_ids are missing"):
        checked(None, None, CPU)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ({5}, [[1, 2, 4, 5, 0], [1, 3, 5, 0, 0]]),
        ({4, 5}, [[1, 2, 4, 0, 0], [1, 3, 5, 0, 0]]),
        ((), [[1, 2, 4, 5, 8], [1, 3, 5, 4, 5]]),
    ],
    ids=["one", "two", "none"],
)
def test_what_follows_a_stop_token_is_filled(stops: Any, expected: list[list[int]]) -> None:
    ids: Tensor = torch.tensor([[1], [1]], dtype=torch.int32)
    made = sequences(ids, [[2, 4, 5, 8], [3, 5, 4, 5]], stops, 0)
    assert made.dtype == torch.int64
    assert made.tolist() == expected
