"""Decode by a learned schedule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dlm.decoders.artefact import ScheduleArtefact
from dlm.decoders.base import Policy
from dlm.decoders.select import top
from dlm.options import file, known
from dlm.types import Adjustment, Decision, Facts, StepView


@dataclass(frozen=True, slots=True)
class Schedule(Policy):
    """Commit the n_k best in forward pass k of a block, from logits scaled by a_k.

    An artefact (`ScheduleArtefact`) holds n_k and a_k: reveal counts, resampled to the masks of
    each block, and inverse temperatures, learned by distilling a sampler of many steps (LSD,
    arXiv:2509.19962). The artefact's base policy ranks positions. At least `quota` are committed.

    Args:
        path: path of the artefact. None is the identity artefact, one token per forward pass and
            no scale, which equals `low_confidence`.
    """

    path: str | Path | None = None
    paper: ClassVar[str] = "arXiv:2509.19962"

    @property
    def needs(self) -> frozenset[str]:
        """What the default base policy ranks by."""
        return frozenset({"confidence", "position_noise"})

    @property
    def draws(self) -> bool:
        """Whether positions are drawn at any temperature, as with the base policy "random"."""
        return self.path is not None and ScheduleArtefact.load(self.path).base_policy == "random"

    def __post_init__(self) -> None:
        if self.path is not None:
            file("path", self.path)

    def bind(self, facts: Facts) -> "Playing":
        """Read the artefact, check it against the model and lay it out as tables."""
        if self.path is None:
            return Playing(self.path)
        artefact = ScheduleArtefact.load(self.path)
        artefact.check_model(facts.vocab_size, facts.mask_id)
        known(f"base_policy of {str(self.path)!r}", artefact.base_policy, RANKS)
        if artefact.scope == "generation" and facts.blocks > 1:
            raise ValueError(
                f"block_length must be None, or span the generation, for {str(self.path)!r}, whose "
                f"scope is the whole generation; got {facts.blocks} blocks"
            )
        counts = artefact.counts_table(facts.block_length).to(facts.device)
        scaled = any(scale != 1 for scale in artefact.logit_scale)
        scales = artefact.scales_table(facts.block_length).to(facts.device) if scaled else None
        return Playing(self.path, artefact, counts, scales)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Masks of the block before its first forward pass, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Always raise: only the decoder that `bind` returns can decode."""
        raise ValueError("schedule must be bound to a model before it decodes: call bind")


@dataclass(frozen=True, slots=True)
class Playing(Schedule):
    """A schedule with its artefact loaded."""

    artefact: ScheduleArtefact | None = None
    # Indexed by masks of the block and forward pass: int64 and float32 [K + 1, steps].
    counts: Tensor | None = field(default=None, compare=False, repr=False)
    scales: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def needs(self) -> frozenset[str]:
        """What the base policy ranks by."""
        statistic = RANKS[self.base]
        if statistic in ("positions", "uniform"):
            return frozenset({statistic} - {"positions"})
        return frozenset({statistic, "position_noise"})

    @property
    def blind(self) -> bool:
        """Whether the base policy ignores the sampled tokens."""
        return RANKS[self.base] != "confidence"

    @property
    def base(self) -> str:
        """The policy that ranks positions."""
        return "low_confidence" if self.artefact is None else self.artefact.base_policy

    @property
    def adjust(self) -> Callable[..., Any] | None:
        """Scaling, if any scale is not 1."""
        return None if self.scales is None else self.scale

    def scale(self, state: Tensor, view: StepView) -> tuple[Tensor, Adjustment]:
        """a_k of each row."""
        assert self.artefact is not None
        assert self.scales is not None
        state = self.masks(state, view)
        factor = self.scales[state, view.step.clamp(max=self.scales.shape[1] - 1)]
        return state, Adjustment(scale=factor, scale_statistics=self.artefact.scale_confidence)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        """Commit the top n_k positions by the base policy's score, at least `quota`."""
        state = self.masks(state, view)
        count = view.quota
        if self.counts is not None:
            planned = self.counts[state, view.step.clamp(max=self.counts.shape[1] - 1)]
            count = torch.maximum(count, planned)
        scores = view.want(RANKS[self.base])
        scores = -scores if RANKS[self.base] in ("entropy", "positions", "uniform") else scores
        return state, Decision(top(view.tempered(scores), view.masked, count))

    @staticmethod
    def masks(state: Tensor, view: StepView) -> Tensor:
        """Number of masks that the block began with, int64 [B]."""
        return torch.where(view.step == 0, view.masked.sum(-1), state)


RANKS = {
    "low_confidence": "confidence",
    "entropy": "entropy",
    "margin": "margin",
    "random": "uniform",
    "left_to_right": "positions",
}
"""Maps a base policy to the field of a view that it ranks by."""
