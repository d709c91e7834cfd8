"""Conversion between padded batches and rows of token ids.

Shapes: B rows, P prompt columns, N new tokens.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from dlm.options import integer


def named_so(input_ids: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """The prompts; if they are given under the name `inputs`, they are taken out of the options.

    Raises:
        ValueError: both names are given.
    """
    inputs: Tensor | None = options.pop("inputs", None)
    if inputs is not None and input_ids is not None:
        raise ValueError("inputs is input_ids by another name: give one of them")
    return input_ids if inputs is None else inputs


def checked(input_ids: Tensor | None, bos_id: int | None, device: torch.device) -> Tensor:
    """Check the prompts, integer [B, P]; without any, return the begin-of-text token on `device`.

    Raises:
        ValueError: the shape or dtype is wrong, or there is no begin-of-text token either.
    """
    if input_ids is None:
        if bos_id is None:
            raise ValueError("input_ids are missing, and there is no bos_token_id to begin with")
        return torch.tensor([[integer("bos_token_id", bos_id, least=0)]], device=device)
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or not input_ids.numel():
        what = list(input_ids.shape) if isinstance(input_ids, Tensor) else input_ids
        raise ValueError(f"input_ids must be a tensor [B, P] with P >= 1, got {what}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must hold whole numbers, got {input_ids.dtype}")
    return input_ids


def prompts(
    input_ids: Tensor, attention_mask: Tensor | None, pad_id: int | None
) -> list[list[int]]:
    """The tokens of each row, without the padding on either side.

    Args:
        input_ids: integer [B, P].
        attention_mask: [B, P], 0 at padding; None if every token counts.
        pad_id: the padding token, to detect a forgotten mask.

    Raises:
        ValueError: the mask has another shape, has holes, or leaves a row without tokens; or there
            is no mask, and one of several rows looks padded.
    """
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is None:
        padded = any(pad_id in (row[0], row[-1]) for row in rows)
        if pad_id is not None and len(rows) > 1 and padded:
            raise ValueError(
                f"attention_mask must be given for rows that begin or end with pad_token_id "
                f"{pad_id}: ones where it is a token like any other"
            )
        return rows
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor [B, P], got {attention_mask!r}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    kept = []
    for number, (row, mask) in enumerate(zip(rows, attention_mask.tolist(), strict=True)):
        real = [i for i, flag in enumerate(mask) if flag]
        if set(mask) - {0, 1} or not real or real[-1] - real[0] + 1 != len(real):
            raise ValueError(
                f"attention_mask must be 1 on one stretch of a row and 0 on both sides of it, "
                f"got {mask} in row {number}"
            )
        kept.append(row[real[0] : real[-1] + 1])
    return kept


def sequences(
    input_ids: Tensor,
    generated: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    fill_id: int,
) -> Tensor:
    """Append the generated tokens to the prompts, int64 [B, P + N] on the device of the prompts.

    Args:
        input_ids: integer [B, P], kept as they are.
        generated: N tokens for each row.
        stop_ids: tokens that end a row; empty if rows run to their end.
        fill_id: replaces everything after the first stop token.
    """
    rows = [list(row) for row in generated]
    for row in rows:
        end = next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))
        row[end:] = [fill_id] * (len(row) - end)
    fresh = torch.tensor(rows, dtype=torch.int64, device=input_ids.device)
    return torch.cat((input_ids.long(), fresh), -1)
