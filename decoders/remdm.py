"""Remask committed tokens at the rate of a diffusion process that may remask."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.decoders.base import Policy
from dlm.decoders.remdm_loops import Loops, Remasking
from dlm.decoders.select import exact_sum
from dlm.options import integer, known, number
from dlm.types import Decision, StepView

LOOPED = ("llada", "llada_remdm")
ETAS = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}
LOOP_TIMES = (0.55, 0.05)  # between these times alpha stays at LOOP_ALPHA
LOOP_ALPHA = 0.9


@dataclass(frozen=True, slots=True)
class ReMDM(Policy):
    """Remask committed tokens at rate sigma, and reveal masks at the rate that makes up for it.

    From time t to s a committed token is remasked with probability sigma, and a mask is revealed
    with probability (a_s - (1 - sigma) a_t) / (1 - a_t), with alpha(t) = 1 - t. The time grid has
    the block's `steps`, or as many steps as its blanks without a budget. Wang et al. 2025 (ReMDM,
    arXiv:2503.00307), eq. 6 and section 4: sigma_max = min(1, (1 - a_s) / a_t), and sigma is

    - "cap": min(eta, sigma_max)

    - "rescale": eta sigma_max

    - "conf": eta sigma_max softmax(-c) over committed tokens, c their confidence at commitment,
      and 0 for masks (the one variant that does not keep the marginals)

    - "loop": min(eta, sigma_max) while alpha stays at 0.9 (t from 0.55 to 0.05), else 0

    Two variants for LLaDA draw no positions. They commit `unmask_k` tokens per forward pass up to
    the fraction `init_unmask_ratio` of the block, loop `loop_steps` times, and commit the rest.

    - "llada": a loop remasks the `unmask_k` least probable tokens, and the next forward pass
      commits as many. From the code of PC-Sampler (arXiv:2508.13021) and Saber.

    - "llada_remdm": a loop remasks the `unmask_k` tokens that were least confident at commitment,
      before the forward pass that commits as many; tokens are samples at `temperature=1.0`. From
      the authors' own code, for one token per forward pass; for more that code counts differently.

    Every block has its own loops. A `steps` budget cuts them short. A block has no loops if it has
    at most `unmask_k` blanks, as they would only repeat its one forward pass, or if the ratio is
    less than one token of it.
    """

    variant: str = "llada"
    eta: float | None = None  # None for the paper's value
    init_unmask_ratio: float = 0.875
    unmask_k: int = 1
    loop_steps: int = 32
    paper: ClassVar[str] = "arXiv:2503.00307"
    mutates_committed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known("variant", self.variant, (*LOOPED, *ETAS))
        if self.eta is not None:
            number("eta", self.eta, least=0.0, most=1.0)
            if self.variant in LOOPED:
                raise ValueError(f"eta is for the variants {', '.join(ETAS)}, got {self.eta}")
        number("init_unmask_ratio", self.init_unmask_ratio, least=0.0, most=1.0)
        integer("unmask_k", self.unmask_k, least=1)
        integer("loop_steps", self.loop_steps, least=0)

    @property
    def needs(self) -> frozenset[str]:
        """The variants for LLaDA rank positions; the others draw them."""
        if self.variant in LOOPED:
            probable = {"token_probability"} if self.variant == "llada" else set()
            return frozenset({"confidence", "position_noise"} | probable)
        return frozenset({"uniform", "confidence"} if self.variant == "conf" else {"uniform"})

    @property
    def blind(self) -> bool:
        """Whether positions are drawn from noise alone."""
        return self.variant not in (*LOOPED, "conf")

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        """The budget; without one, the grid, or the commits and the loops."""
        each = {"llada": 2, "llada_remdm": 1}.get(self.variant, 0)
        return torch.where(limit > 0, limit, blanks + each * self.loop_steps * (blanks > 0))

    def init_state(self, batch: int, length: int) -> Remasking:
        """No loop moves made."""
        moves = torch.zeros(batch, dtype=torch.int64)
        return Remasking(moves, torch.zeros(batch, length, dtype=torch.float32))

    def step(self, state: Remasking, view: StepView) -> tuple[Remasking, Decision]:
        """Loop, or draw positions."""
        if self.variant not in LOOPED:
            return self.draw(state, view)
        loops = Loops(self.init_unmask_ratio, self.unmask_k, self.loop_steps)
        return (loops.probable if self.variant == "llada" else loops.remembered)(state, view)

    def draw(self, state: Remasking, view: StepView) -> tuple[Remasking, Decision]:
        """Reveal or remask each position at its rate from this grid time to the next."""
        noise = view.want("uniform")
        blanks = view.masked.sum(-1) + view.editable.sum(-1)
        steps = torch.where(view.limit > 0, view.limit, blanks)
        time, after = (1 - (view.step + k).double() / steps for k in (0, 1))
        now, then = self.alpha(time)[:, None], self.alpha(after)[:, None]
        sigma = self.rate(state, view, now, then, time)
        reveal = ((then - (1 - sigma) * now) / (1 - now)).clamp(0.0, 1.0)
        last = (view.step + 1 >= steps)[:, None]
        commit = view.masked & ((noise <= reveal) | last)
        remask = view.editable & (noise <= sigma) & ~last
        kept = state.confidence
        if self.variant == "conf":
            kept = torch.where(commit, view.want("confidence"), kept)
        decision = Decision(commit, remask=remask, hold=~last[:, 0], time=after.float())
        return Remasking(state.moves, kept), decision

    def alpha(self, time: Tensor) -> Tensor:
        """Survival probability at times t, float64: 1 - t, or with a plateau for "loop"."""
        if self.variant != "loop":
            return 1 - time
        on, off = LOOP_TIMES
        early = LOOP_ALPHA * (1 - time) / (1 - on)
        late = LOOP_ALPHA + (1 - LOOP_ALPHA) * (off - time) / off
        return torch.where(time > on, early, late.clamp(min=LOOP_ALPHA))

    def rate(
        self, state: Remasking, view: StepView, now: Tensor, then: Tensor, time: Tensor
    ) -> Tensor:
        """Remasking rate sigma of each position, float64 [B, 1], or [B, W] for "conf"."""
        eta = ETAS[self.variant] if self.eta is None else self.eta
        most = ((1 - then) / now).nan_to_num(nan=1.0, posinf=1.0).clamp(0.0, 1.0)
        if self.variant == "rescale":
            return eta * most
        if self.variant == "conf":
            weight = (-state.confidence.double()).exp() * view.editable
            total = exact_sum(weight, view.editable).clamp(min=1e-9)
            return eta * most * weight / total[:, None]
        if self.variant == "loop":
            resting = (time <= LOOP_TIMES[0]) & (time > LOOP_TIMES[1])
            return torch.minimum((eta * resting.double())[:, None], most)
        return most.clamp(max=eta)
