"""Weight confidence by how informative a token is and by its position."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Stateless
from dlm.decoders.frequencies import read_frequencies
from dlm.decoders.select import NEVER, top
from dlm.options import file, known, number
from dlm.types import Decision, Facts, StepView

ORIGINS = ("block", "generation")
WEIGHTS = ("exponential", "linear")
GUARD = 1e-9  # keeps the logarithm finite for a token that never occurs


@dataclass(frozen=True, slots=True)
class PCSampler(Stateless):
    """Commit the `quota` best by exp(-lambda_ j) min(-c ln f(token), alpha).

    j is the index of the position in its block, c = p(sampled), f the background frequency of the
    sampled token: frequent tokens carry little information, and early positions go first. Huang et
    al. 2025 (PC-Sampler, arXiv:2508.13021), eq. 6. The clamp applies before the position weight, as
    in the authors' code.

    Args:
        lambda_: strength of the preference for early positions; the paper uses 0 for sudoku, 0.25
            for GSM8K, MATH, HumanEval, MBPP and GPQA, 0.5 for countdown.
        alpha: largest content score.
        frequencies: path of a JSON file (a list, or the authors' counts), the V frequencies
            themselves, or "model" for the model's mean prediction on a canvas of masks (stop
            tokens are averaged apart from the others).
        weight: "exponential" is the formula above. "linear" ranks by
            (1 - lambda_) minmax(s) + lambda_ (L - j) / L, s = min(-c ln f, alpha), L one more than
            the largest j of the block (`linear_position` of the authors' code). minmax scales by
            the range of s over all positions of the block. For a committed position, c is the
            confidence of the predicted token and f the frequency of the committed one.
        position_origin: where j counts from, "block" or "generation". It shifts j of a whole block
            alike, which changes draws at a position temperature, and the linear weight.
    """

    lambda_: float = 0.25
    alpha: float = 10.0
    frequencies: str | Path | Sequence[float] | Tensor = "model"
    weight: str = "exponential"
    position_origin: str = "block"
    paper: ClassVar[str] = "arXiv:2508.13021"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def __post_init__(self) -> None:
        most = 1.0 if self.weight == "linear" else float("inf")
        number("lambda_", self.lambda_, least=0.0, most=most)
        number("alpha", self.alpha, least=0.0, most=3e38)  # float32 holds no more
        known("weight", self.weight, WEIGHTS)
        known("position_origin", self.position_origin, ORIGINS)
        given: object = self.frequencies
        if isinstance(given, str | Path):
            if given != "model":
                file("frequencies", given)
        elif isinstance(given, Tensor | Sequence) and not isinstance(given, bytes):
            # A tuple, as tensors and lists do not hash.
            object.__setattr__(self, "frequencies", tuple(read_frequencies(given).tolist()))
        else:
            raise ValueError(
                f"frequencies must be a path, a sequence, a tensor or 'model', got {given!r}"
            )

    @property
    def reads_committed(self) -> bool:
        """Whether scores depend on committed positions."""
        return self.weight == "linear"

    def bind(self, facts: Facts) -> "Weighted":
        """Read the frequencies, and move them to the device of the model."""
        if self.frequencies == "model":
            table = facts.background()
        else:
            table = read_frequencies(self.frequencies, facts.vocab_size).to(facts.device)
        options = {option.name: getattr(self, option.name) for option in fields(PCSampler)}
        options["frequencies"] = "model"  # the table holds them; as a tuple they are large
        return Weighted(**options, table=table)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Always raise: only the decoder that `bind` returns can decode."""
        raise ValueError("pc_sampler must be bound to a model before it decodes: call bind")


@dataclass(frozen=True, slots=True)
class Weighted(PCSampler):
    """PC-Sampler with its frequencies on the device of the model."""

    table: Tensor | None = field(default=None, compare=False, repr=False)  # float32 [V]

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """Commit the top `quota` positions by the weighted, calibrated confidence."""
        scores = self.linear(view) if self.weight == "linear" else self.exponential(view)
        return None, Decision(top(view.tempered(scores), view.masked, view.quota))

    def index(self, view: StepView) -> Tensor:
        """Index j of each column, int64 [B, W]."""
        origin = view.block_start if self.position_origin == "block" else view.row_start
        return view.positions - origin[:, None]

    def content(self, view: StepView) -> Tensor:
        """min(-c ln f, alpha), float32 [B, W]."""
        assert self.table is not None
        tokens = view.tokens.where(view.editable, view.sampled)
        rarity = -(self.table[tokens] + GUARD).log()
        return (view.want("confidence") * rarity).clamp(max=self.alpha)

    def exponential(self, view: StepView) -> Tensor:
        """exp(-lambda_ j) min(-c ln f, alpha)."""
        index = self.index(view)
        if view.position_noise is None:
            # Count from the row's first mask: the order is the same, and exp does not underflow.
            index = index - index.masked_fill(~view.masked, NEVER).amin(-1, keepdim=True)
        return self.content(view) * torch.exp(-self.lambda_ * index.double().clamp(min=0))

    def linear(self, view: StepView) -> Tensor:
        """(1 - lambda_) minmax(min(-c ln f, alpha)) + lambda_ (L - j) / L."""
        content, inside = self.content(view), view.masked | view.editable
        least = content.masked_fill(~inside, float("inf")).amin(-1, keepdim=True)
        most = content.masked_fill(~inside, -float("inf")).amax(-1, keepdim=True)
        scaled = (content - least) / (most - least).clamp(min=GUARD)
        index = self.index(view)
        length = (index + 1).masked_fill(~inside, 1).amax(-1, keepdim=True)
        return (1 - self.lambda_) * scaled + self.lambda_ * (length - index) / length
