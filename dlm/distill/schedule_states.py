"""Intermediate states of decoding, and what the network predicts for them.

Shapes: B rows, L canvas, G generated tokens, W positions of a block, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import active_length
from dlm.decoders.schedule import RANKS
from dlm.decoders.select import descending
from dlm.kernels import token_statistics
from dlm.models.model import Model, block_causal, causal_context, masks_last

BASES = ("entropy", "left_to_right", "low_confidence", "margin")
"""Base policies whose ranking depends only on the state."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The masked positions of a block, in the order in which they would be revealed."""

    column: Tensor  # int64 [B, W], index into the generated span; masked ones first
    token: Tensor  # int64 [B, W], arg max at each position


@dataclass(frozen=True, slots=True)
class Layout:
    """Prompts followed by a generated span, and the blocks of the span."""

    model: Model
    prompts: Sequence[Sequence[int]]
    gen_length: int
    block_length: int  # tokens of a block, at most gen_length

    @classmethod
    def of(
        cls, model: Model, prompts: Sequence[Sequence[int]], gen_length: int, block: int | None
    ) -> "Layout":
        """The layout with the block length that decoding would use.

        Raises:
            ValueError: a prompt does not end on a block boundary of the network.
        """
        size = model.spec.grid
        odd = [] if size is None else [len(row) for row in prompts if len(row) % size]
        if odd:
            raise ValueError(
                f"prompts must end where a block of the network does, every {size} tokens, "
                f"got one of {odd[0]} tokens"
            )
        length = min(active_length(block, model.spec) or gen_length, gen_length)
        return cls(model, prompts, gen_length, length)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each block."""
        return [
            min(self.block_length, self.gen_length - at)
            for at in range(0, self.gen_length, self.block_length)
        ]

    @property
    def suppressed(self) -> Tensor:
        """Tokens that are never sampled, bool [V]."""
        spec = self.model.spec
        found = torch.zeros(spec.vocab_size, dtype=torch.bool)
        found[list(spec.banned)] = True
        return found.to(self.model.device)

    def blank(self, rows: int) -> Tensor:
        """Fully masked spans, int64 [B, G]."""
        return torch.full((rows, self.gen_length), self.model.spec.mask_id)

    def logits(self, spans: Tensor, rows: Sequence[int], block: int) -> Tensor:
        """Logits [B, W, V] at the positions of a block, with no token suppressed.

        Args:
            spans: int64 [B, G], on the CPU.
            rows: index of each span's prompt.
            block: index of the block.
        """
        spec, device = self.model.spec, self.model.device
        whole = [
            [*self.prompts[row], *span, *spec.suffix]
            for row, span in zip(rows, spans.tolist(), strict=True)
        ]
        width = max(map(len, whole))
        tokens = torch.tensor([[*row, *[spec.eos_id] * (width - len(row))] for row in whole])
        valid = torch.arange(width) < torch.tensor([[len(row)] for row in whole])
        begin = torch.tensor([[len(self.prompts[row])] for row in rows]) + sum(self.sizes[:block])
        at = (begin + torch.arange(self.sizes[block])).to(device)
        columns = torch.arange(width, device=device)[None]
        attend = None
        if spec.causal:  # padding comes after all else, so causal attention hides it
            attend = causal_context(columns, columns, at[:, 0], at[:, -1] + 1)
            if spec.reordered:
                masked = (tokens == spec.mask_id).to(device)
                attend = attend & masks_last(columns, columns, masked, masked)
        elif spec.anchored and spec.block_size is not None:  # padding hidden likewise
            given = torch.tensor([len(self.prompts[row]) for row in rows], device=device)
            attend = block_causal(columns, columns, spec.block_size, given)
        hidden = self.model.hidden(
            tokens.to(device), columns, None if valid.all() else valid.to(device), attend=attend
        )
        places = torch.arange(len(rows), device=hidden.device)[:, None]
        return self.model.logits(hidden[places, at.to(hidden.device)]).to(device)

    def rank(
        self, spans: Tensor, rows: Sequence[int], block: int, base: str, scale: float = 1.0
    ) -> Ranked:
        """Rank the masked positions of a block as a base policy does, by scaled logits."""
        logits = self.logits(spans, rows, block)
        begin, size = sum(self.sizes[:block]), self.sizes[block]
        flat = logits.flatten(0, 1)
        field = RANKS[base]
        wanted: Any = () if field == "positions" else (field,)
        factor = None if scale == 1 else torch.full((len(flat),), scale, device=flat.device)
        found = token_statistics(flat, wanted, suppressed=self.suppressed, scale=factor)
        if not found.maximum.isfinite().all():
            raise ValueError("the network returned NaN or infinite logits")
        token = found.sampled.view(len(rows), size).cpu()
        if field == "positions":
            scores = -torch.arange(size).float().expand(len(rows), -1)
        else:
            scores = getattr(found, field).view(len(rows), size).cpu()
            scores = -scores if field == "entropy" else scores
        masked = spans[:, begin : begin + size] == self.model.spec.mask_id
        order = descending(scores, masked)
        return Ranked(order + begin, token.gather(1, order))
