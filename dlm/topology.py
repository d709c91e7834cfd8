"""The attention pattern: which columns a query sees, and where attention blocks begin and end.

Shapes: B rows, L canvas, W window, Q queries.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dlm.canvas import Canvas, active_length
from dlm.models.model import Model, block_causal, causal_context, masks_last
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import StepView


@dataclass(frozen=True, slots=True)
class Topology:
    """Which positions attend to which while rows are decoded block by block."""

    final: bool  # whether keys and values before a block are final
    size: int | None  # tokens of an attention block; None if these are the decoding blocks
    causal: bool  # whether attention is causal before the decoded block
    reordered: int | None  # the mask token's id, where only masks attend to masks
    anchored: bool  # whether attention blocks are counted from a row's first blank
    block_length: int | None  # tokens of a decoding block; None for the whole row
    ahead: bool  # whether blocks after the active one may be open
    shadowed: bool  # whether every blank of the window has a shadow mask

    @classmethod
    def of(cls, model: Model, traits: Traits, settings: Settings) -> Self:
        """The topology for a network, a decoder and the options."""
        spec = model.spec
        return cls(
            final=spec.block_size is not None,
            size=None if spec.causal else spec.block_size,
            causal=spec.causal,
            reordered=spec.mask_id if spec.reordered else None,
            anchored=spec.anchored,
            block_length=active_length(settings.block_length, spec),
            ahead=traits.ahead > 0,
            shadowed="leave_one_out" in traits.needs,
        )

    @property
    def open(self) -> bool:
        """Whether every query sees its whole row."""
        return not (self.final or self.shadowed)

    @property
    def on_grid(self) -> bool:
        """Whether attention blocks are counted from the beginning of a row."""
        return self.size is not None and not self.anchored

    def block_start(self, canvas: Canvas, start: Tensor) -> Tensor:
        """Start of the attention block that contains a decoding block's start, [B]."""
        if self.size is None:
            return start
        return start - (start - canvas.origin if self.anchored else start) % self.size

    def block_end(self, canvas: Canvas, start: Tensor, stop: Tensor | None = None) -> Tensor:
        """One past the end of that attention block, at most the end of the row, [B].

        With `stop`, [B], the attention block is the one that contains the position before it; it
        ends there if attention blocks are the decoding blocks.
        """
        size = self.size or self.block_length
        assert size is not None
        if self.size is None and stop is not None:
            return torch.minimum(stop, canvas.length)
        last = start if stop is None else stop - 1
        return torch.minimum(self.block_start(canvas, last) + size, canvas.length)

    def reach(self, canvas: Canvas, start: Tensor, stop: Tensor | None = None) -> Tensor:
        """One past the end of a decoding block, at most the row's last blank, [B].

        With `stop`, [B], decoding ends there instead.
        """
        if self.block_length is None:
            return canvas.stop
        end = start + self.block_length if stop is None else stop
        return torch.minimum(end, canvas.stop)

    def seen(
        self, canvas: Canvas, view: StepView, positions: Tensor, valid: Tensor | None, reuse: bool
    ) -> Tensor | None:
        """Which columns each query sees; None if the model can tell.

        Args:
            canvas: the rows.
            view: their windows.
            positions: int64 [B or 1, Q], positions of the queries.
            valid: bool [B, L], False at padding; None if there is none.
            reuse: whether the keys of other columns come from a cache.

        Returns:
            bool [B, Q or 1, L].
        """
        in_blocks = self.size is not None and (self.anchored or reuse or self.shadowed)
        if not (self.causal or in_blocks):
            return valid[:, None] if reuse and valid is not None else None  # more keys than queries
        keys = torch.arange(canvas.tokens.shape[1], device=positions.device)[None]
        if self.size is not None:
            origin = canvas.origin if self.anchored else None
            attend = block_causal(positions, keys, self.size, origin)
        else:  # the window may reach back to earlier blocks
            end = self.open_end(view) if self.ahead else self.block_end(canvas, view.block_start)
            attend = causal_context(positions, keys, view.positions[:, 0], end)
        if self.reordered is not None:
            masked = canvas.tokens == self.reordered
            asked = positions.expand(len(masked), -1).clamp(max=masked.shape[1] - 1)
            attend = attend & masks_last(positions, keys, masked.gather(1, asked), masked)
        return attend if valid is None else attend & valid[:, None]

    def open_end(self, view: StepView) -> Tensor:
        """One past the last open blank of each row, [B]: where what its masks see ends."""
        return (view.positions + 1).where(view.masked | view.editable, 0).amax(-1)

    def with_shadows(
        self,
        canvas: Canvas,
        view: StepView,
        count: int,
        valid: Tensor | None,
        seen: Tensor | None,
    ) -> Tensor:
        """Extend the mask `seen` by the window's shadows, which follow `count` queries.

        Returns:
            bool [B, Q + W, L + W].
        """
        length = canvas.tokens.shape[1]
        attend = shadow_attention(view, count, length, valid)
        if self.final and seen is not None:
            own = self.seen(canvas, view, view.positions, None, True)
            assert own is not None
            batch = attend.shape[0]
            both = torch.cat((seen.expand(batch, -1, -1), own), 1)
            attend[:, :, :length] &= both
        return attend


def shadow_attention(view: StepView, count: int, width: int, valid: Tensor | None) -> Tensor:
    """The attention mask when every blank of the window has a shadow mask.

    Real tokens never see shadows. A shadow sees all real tokens except the one at its own position,
    and all shadows (WINO, arXiv:2507.18578, section 3.2).

    Args:
        view: the window.
        count: Q, real tokens among the queries.
        width: L, of the canvas.
        valid: bool [B, L], False at padding; None if there is none.

    Returns:
        bool [B, Q + W, L + W], whether a query (second axis) sees a key (third axis).
    """
    batch, shadows = view.positions.shape
    device = view.positions.device
    own = torch.arange(width, device=device) == view.positions[..., None]
    attend = torch.zeros(batch, count + shadows, width + shadows, dtype=torch.bool, device=device)
    attend[:, :, :width] = True if valid is None else valid[:, None]
    attend[:, count:, :width] &= ~own
    attend[:, count:, width:] = (view.masked | view.editable)[:, None]
    return attend
