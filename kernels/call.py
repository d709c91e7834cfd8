"""The arguments and results of `token_statistics` as values, shared by all implementations.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dlm.kernels.checks import (
    check_bonus,
    check_report,
    check_sampling,
    check_tensors,
    check_wanted,
)
from dlm.kernels.noise import NoiseKey
from dlm.kernels.tiles import Bonus, Suppressed


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """One sampled token per row, and statistics of the row's law, by default the model's own."""

    sampled: Tensor  # int64 [N]
    maximum: Tensor  # float32 [N], largest logit; not finite in a broken row (NaN, +inf)
    confidence: Tensor | None = None  # float32 [N], p(sampled)
    margin: Tensor | None = None  # float32 [N], largest minus second largest probability
    entropy: Tensor | None = None  # float32 [N], nats
    token_probability: Tensor | None = None  # float32 [N], p(tokens)
    token_log_probability: Tensor | None = None  # float32 [N], ln p(tokens), without underflow
    sampled_log_probability: Tensor | None = None  # float32 [N], ln q(sampled), q the sampling law
    top_tokens: Tensor | None = None  # int64 [N, S], likeliest first
    top_probabilities: Tensor | None = None  # float32 [N, S], of `top_tokens`


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The arguments of `token_statistics`, which documents them.

    Raises:
        ValueError: If an option, a name, a shape or a dtype breaks its rule.
    """

    logits: Tensor  # any floating dtype [N, V]
    wanted: Collection[str]
    temperature: float | Tensor = 0.0  # or float32 [N]
    top_k: int | None = None
    top_p: float | None = None
    suppressed: Tensor | Suppressed | None = None  # bool [V]
    tokens: Tensor | None = None  # int64 [N]
    key: NoiseKey | None = None
    law: Literal["model", "sampling"] = "model"
    scale: Tensor | None = None  # float32 [N]
    scale_statistics: bool = True
    bonus: Bonus | None = None
    top: int = 0
    min_p: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        check_report(self.law, self.scale_statistics, self.top)
        check_wanted(self.wanted)
        check_tensors(
            self.logits,
            self.wanted,
            self.temperature,
            self.suppressed,
            self.tokens,
            self.key,
            self.scale,
        )
        check_bonus(self.logits, self.bonus)

    @property
    def mask(self) -> Tensor | None:
        """The suppressed tokens, bool [V]."""
        return self.suppressed.mask if isinstance(self.suppressed, Suppressed) else self.suppressed

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; otherwise the arg max is taken."""
        return isinstance(self.temperature, Tensor) or self.temperature > 0

    @property
    def cuts(self) -> bool:
        """Whether top-k, top-p or min-p may drop a token."""
        return self.searches or bool(self.min_p)

    @property
    def searches(self) -> bool:
        """Whether top-k or top-p may drop a token: only they have to search for the last one."""
        drops = self.top_k is not None and self.top_k < self.logits.shape[1]
        return drops or (self.top_p is not None and self.top_p < 1)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the logits."""
        return self.logits.dtype

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.logits.device


Path = Callable[[Call], TokenStatistics]
"""An implementation of `token_statistics`."""
