"""What a user adds to the logits of some tokens, at every position alike.

Shapes: N positions, J tokens with a bias, A tokens that a decoder raises, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.kernels import Bonus


@dataclass(frozen=True, slots=True)
class Bias:
    """Tokens, each once, and what is added to their logits."""

    tokens: Tensor  # int64 [J]
    values: Tensor  # float32 [J]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, float]], device: torch.device) -> "Bias":
        """That of token ids with their values."""
        tokens = torch.tensor([token for token, _ in pairs], dtype=torch.int64)
        values = torch.tensor([value for _, value in pairs], dtype=torch.float32)
        return cls(tokens.to(device), values.to(device))

    def beside(self, bonus: Bonus | None, count: int) -> Bonus | None:
        """What is added at each of `count` positions, a decoder's bonus [N, A] included."""
        if not self.tokens.numel():
            return bonus
        own = Bonus(self.tokens.expand(count, -1), self.values.expand(count, -1))
        if bonus is None:
            return own
        return Bonus(*(torch.cat(parts, 1) for parts in zip(own, bonus, strict=True)))

    def added(self, logits: Tensor) -> Tensor:
        """Logits [N, V] with it, in float32 at least; themselves where there is none."""
        if not self.tokens.numel():
            return logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        own = self.values.to(wide).expand(len(logits), -1)
        return logits.to(wide, copy=True).index_add_(1, self.tokens, own)
