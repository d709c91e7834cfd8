"""Rotary position embedding, with its extensions to long contexts.

Shapes: B rows, L tokens, E head width, R rotated columns of it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dlm.models.buffers import WideBuffers


class Angles(NamedTuple):
    """What queries and keys are rotated and scaled by, according to their positions."""

    cosine: Tensor  # [B or 1, 1, L, R]
    sine: Tensor  # [B or 1, 1, L, R]
    scale: Tensor | None  # [B or 1, 1, L, 1], factor of rotated queries; None means 1


class RotaryEmbedding(WideBuffers):
    """Angles of rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = nn.Buffer(self.frequencies(config), persistent=False)

    @staticmethod
    def frequencies(config: Any) -> Tensor:
        """Frequencies theta^(-2i/R), float32 [R/2], of the R rotated columns of a head.

        With YaRN (Peng et al. 2023, arXiv:2309.00071), low frequencies are divided by a factor.
        """
        if config.yarn:
            stretched: Tensor = ROPE_INIT_FUNCTIONS["yarn"](config)[0]
            return stretched
        exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
        frequencies: Tensor = 1.0 / config.rope_theta**exponent
        return frequencies

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """Angles at int64 positions [B, L].

        They are in the dtype of the network, as in most releases, or in float32 or wider if the
        configuration's `rope_full_precision` is set.
        """
        wide = torch.promote_types(dtype, torch.float32)
        angle = positions[:, None, :, None].to(wide) * self.inv_freq.to(wide)
        angle = torch.cat((angle, angle), -1)
        kept = wide if self.config.rope_full_precision else dtype
        return Angles(angle.cos().to(kept), angle.sin().to(kept), self.scale(positions, dtype))

    def scale(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Factor of queries, 1 + beta ln(1 + floor(i / N)), at positions i, int64 [B, L].

        It keeps the softmax as sharp over more keys than the N of pre-training (attention scaling
        of Llama 4, Meta 2025). None if the family has no such factor.
        """
        told = self.config.query_scale
        if told is None:
            return None
        beta, known = told
        wide = torch.promote_types(dtype, torch.float32)
        times = positions.div(known, rounding_mode="floor").to(wide)
        factor: Tensor = 1 + beta * (1 + times).log()
        return factor.to(dtype)[:, None, :, None]
