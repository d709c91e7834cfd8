"""Rotary position embedding, with what stretches it to long contexts.

Shapes: B rows, L tokens, E head width, R rotated of it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dlm.models.buffers import WideBuffers


class Angles(NamedTuple):
    """What becomes of queries and keys for the places they stand at."""

    cosine: Tensor  # [B or 1, 1, L, R]
    sine: Tensor  # [B or 1, 1, L, R]
    scale: Tensor | None  # [B or 1, 1, L, 1], factor on rotated queries; None is 1


class RotaryEmbedding(WideBuffers):
    """Angles of rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = nn.Buffer(self.frequencies(config), persistent=False)

    @staticmethod
    def frequencies(config: Any) -> Tensor:
        """theta^(-2i/R), float32 [R/2], for the R of E columns of a head that are rotated.

        Under YaRN (Peng et al. 2023, arXiv:2309.00071) the slow ones are divided by a factor.
        """
        if config.yarn:
            stretched: Tensor = ROPE_INIT_FUNCTIONS["yarn"](config)[0]
            return stretched
        exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
        frequencies: Tensor = 1.0 / config.rope_theta**exponent
        return frequencies

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """Angles at int64 positions [B, L].

        In the dtype of the network, as most releases have it; in float32 where queries and keys
        rotate in float32.
        """
        wide = torch.promote_types(dtype, torch.float32)
        angle = positions[:, None, :, None].to(wide) * self.inv_freq.to(wide)
        angle = torch.cat((angle, angle), -1)
        kept = wide if self.config.rope_full_precision else dtype
        return Angles(angle.cos().to(kept), angle.sin().to(kept), self.scale(positions, dtype))

    def scale(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Factor on queries, 1 + beta ln(1 + floor(i / N)) at position i of int64 [B, L].

        Softmax over more keys than the N of pre-training stays as sharp as it was (Llama 4's
        scaling of attention, Meta 2025).
        """
        told = self.config.query_scale
        if told is None:
            return None
        beta, known = told
        wide = torch.promote_types(dtype, torch.float32)
        times = positions.div(known, rounding_mode="floor").to(wide)
        factor: Tensor = 1 + beta * (1 + times).log()
        return factor.to(dtype)[:, None, :, None]
