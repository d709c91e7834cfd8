"""The user's logit bias: values added to some tokens' logits at every position.

Shapes: N positions, J tokens with a bias, A tokens that a decoder raises, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.kernels import Bonus


@dataclass(frozen=True, slots=True)
class Bias:
    """Distinct tokens, and the value added to the logit of each."""

    tokens: Tensor  # int64 [J]
    values: Tensor  # float32 [J]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, float]], device: torch.device) -> "Bias":
        """The bias from pairs of a token id and its value."""
        tokens = torch.tensor([token for token, _ in pairs], dtype=torch.int64)
        values = torch.tensor([value for _, value in pairs], dtype=torch.float32)
        return cls(tokens.to(device), values.to(device))

    def beside(self, bonus: Bonus | None, count: int) -> Bonus | None:
        """The total bonus at each of `count` positions, including a decoder's bonus [N, A]."""
        if not self.tokens.numel():
            return bonus
        own = Bonus(self.tokens.expand(count, -1), self.values.expand(count, -1))
        if bonus is None:
            return own
        return Bonus(*(torch.cat(parts, 1) for parts in zip(own, bonus, strict=True)))

    def added(self, logits: Tensor) -> Tensor:
        """Logits [N, V] plus the bias, in float32 at least; unchanged if there is no bias."""
        if not self.tokens.numel():
            return logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        own = self.values.to(wide).expand(len(logits), -1)
        return logits.to(wide, copy=True).index_add_(1, self.tokens, own)
