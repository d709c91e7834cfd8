"""Value types shared by the runtime and the decoders.

Shapes: B rows, L canvas, W window, N blocks of a row, V vocabulary, K likeliest tokens, J adjusted
tokens of a position, C branches.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")

STATISTICS = frozenset(
    {
        "confidence",
        "margin",
        "entropy",
        "token_probability",
        "leave_one_out",
        "top_tokens",
        "uniform",
        "position_noise",
        "branch_noise",
        "logits",
    }
)
"""What `Decoder.needs` may name: the optional fields of `StepView`."""


@dataclass(frozen=True, slots=True)
class StepView:
    """What a decoder may read in one denoising step. Read-only.

    Fields typed `Tensor | None` hold a tensor if the decoder names them in `needs`. Statistics
    describe the untempered model, unless the decoder declares other `scores` or adjusts logits:
    then they describe the distribution it scores by. Committed columns are measured too if
    `reads_committed` is true; by default it is for decoders that mutate committed tokens or need
    `token_probability`. Unmeasured entries hold 0.
    """

    tokens: Tensor  # int64 [B, W], x_t
    masked: Tensor  # bool [B, W], open for committing
    sampled: Tensor  # int64 [B, W], x_0 drawn by the runtime, where measured
    positions: Tensor  # int64 [B, W], canvas index of each column
    block_start: Tensor  # int64 [B], canvas index of the first position of the block
    block_length: int  # positions of a block; a row may end earlier
    row_start: Tensor  # int64 [B], canvas index of the row's first blank
    row_stop: Tensor  # int64 [B], one past that of its last blank
    step: Tensor  # int64 [B], forward passes already made on this block
    limit: Tensor  # int64 [B], most forward passes of the block, 0 for no limit
    quota: Tensor  # int64 [B], fewest commits now for the block to keep its budget
    editable: Tensor  # bool [B, W], committed and open for remasking and editing
    confidence: Tensor | None = None  # float32 [B, W], p(sampled)
    margin: Tensor | None = None  # float32 [B, W], largest minus second largest probability
    entropy: Tensor | None = None  # float32 [B, W], nats
    token_probability: Tensor | None = None  # float32 [B, W], probability of `tokens`
    leave_one_out: Tensor | None = None  # float32 [B, W], p(tokens) if the position were masked
    top_tokens: Tensor | None = None  # int64 [B, W, K], likeliest first
    top_probabilities: Tensor | None = None  # float32 [B, W, K], their probabilities
    uniform: Tensor | None = None  # float32 [B, W], U(0, 1) noise, fresh at every step
    position_noise: Tensor | None = None  # float32 [B, W], Gumbel noise times position_temperature
    branch_noise: Tensor | None = None  # float32 [B, C, W], standard Gumbel noise; in `step` only
    logits: Tensor | None = None  # [B, W, V], float, biased, banned tokens at -inf

    def want(self, name: str) -> Tensor:
        """The optional field `name`, which the decoder declared in `needs`.

        Raises:
            ValueError: it was not computed.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            only = ", and read it in `step` alone" if name == "branch_noise" else ""
            raise ValueError(f"{name!r} was not computed: name it in the decoder's `needs`{only}")
        return value

    def apart(self) -> "StepView":
        """A copy of everything except the logits, for a decoder that may write to it."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        shared = ("logits",)  # large, and nothing else reads them
        copied = {k for k, v in given.items() if isinstance(v, Tensor) and k not in shared}
        return StepView(**{k: v.clone() if k in copied else v for k, v in given.items()})

    def listing(self, top: int) -> "StepView":
        """The same, with at most `top` of the most likely tokens; none for 0."""
        tokens, p = self.top_tokens, self.top_probabilities
        if tokens is None or p is None or top >= tokens.shape[-1]:
            return self
        if not top:
            return replace(self, top_tokens=None, top_probabilities=None)
        fewer, of_them = (part[..., :top].contiguous() for part in (tokens, p))
        return replace(self, top_tokens=fewer, top_probabilities=of_them)

    def tempered(self, scores: Tensor) -> Tensor:
        """Scores to rank by at the position temperature T of the generation: s + T g.

        g is standard Gumbel noise, so the best k are drawn without replacement from softmax(s / T)
        (Kool et al. 2019, arXiv:1903.06059). T = 0 returns the scores unchanged.
        """
        return scores if self.position_noise is None else scores + self.position_noise

    @property
    def last(self) -> Tensor:
        """Whether this is the last forward pass that the block may take, bool [B]."""
        return (self.limit > 0) & (self.step + 1 >= self.limit)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which positions of the window change."""

    commit: Tensor  # bool [B, W], masked positions that take `sampled`
    remask: Tensor | None = None  # bool [B, W], committed positions that turn into mask
    edit: Tensor | None = None  # bool [B, W], committed positions that take `sampled`
    hold: Tensor | None = None  # bool [B], rows that stay in their block even without a mask
    time: Tensor | None = None  # float32 [B], diffusion time reached, from 1 (noise) to 0 (data)
    lookahead: Tensor | None = None
    """bool [B, C, W], masked positions, not committed, that each branch of the next forward pass
    fills with `sampled`; None for none. `Decoder.choose` says which branch the row goes on with."""

    @property
    def changes(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The positions that are committed, edited and remasked."""
        return self.commit, self.edit, self.remask

    def without(self, rows: Tensor) -> "Decision":
        """The same, with no change in the rows marked in bool [B]."""
        never = rows[:, None]
        commit, edit, remask = (
            None if x is None else x.masked_fill(never, False) for x in self.changes
        )
        assert commit is not None
        hold = None if self.hold is None else self.hold.masked_fill(rows, False)
        return Decision(commit, remask, edit, hold, self.time, self.lookahead)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """How a decoder changes the logits before sampling: (l + bonus) * scale."""

    scale: Tensor | None = None  # float32 [B], above 0: inverse temperature of the row
    scale_statistics: bool = True  # whether confidence and the others see the scale too
    tokens: Tensor | None = None  # int64 [B, W, J]
    bonus: Tensor | None = None  # float32 [B, W, J], added to the logits of `tokens`


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decoder may know about the model, once per generation."""

    vocab_size: int
    mask_id: int
    device: torch.device
    blocks: int  # most blocks of a row
    block_length: int  # most positions of a block
    background: Callable[[], Tensor]
    """float32 [V], mean prediction on a canvas of masks, stop tokens treated separately."""


class Decoder(Protocol[S]):
    """An unmasking policy: a frozen dataclass of hyperparameters, without hidden state.

    A decoder never calls the model, samples, writes tokens or syncs with the host. Its state is
    `None`, a tensor with a leading row axis, or a (named) tuple or frozen dataclass of those: the
    runtime drops and reorders its rows. `init_state` runs under the model's device.

    Branches: with an attribute `branches` above 1, every forward pass evaluates that many variants
    of a row, at that many times the cost. The variants are those that the previous decision
    requested in `lookahead`. A method `choose(state, view)` then returns the one each row continues
    with, int64 [B]; the fields of its view have an axis of branches after the row axis. `step` sees
    the chosen branch. What it had filled is committed by this forward pass, and may be all that it
    commits; what the others had filled is discarded. If no row tries anything, as at the very first
    forward pass, one branch is evaluated and `choose` is not called. If only other rows try
    something, the branches of the row are equal.

    Blocks ahead: with an attribute `ahead` above 0, a window also holds that many blocks after the
    active one, which may change along with it. Before each forward pass, a method `open(state,
    view)` returns the new state and how many columns that is, int64 [B], from a view without
    statistics; open columns stay open. `step` sees open columns as masked or editable and others as
    neither, and only the columns of blocks that are open in some row. The state must therefore be
    per row, not per column.

    A decoder may also have any of the attributes that `dlm.traits.Traits` lists. One that declares
    nothing gets every statistic that needs no extra forward pass and no list of its own, and may
    remask and edit; declarations save work. `dlm.decoders.base.Policy` has the usual values.
    """

    @property
    def paper(self) -> str:
        """The source of the rule, such as "arXiv:2502.09992"."""
        ...

    def init_state(self, batch: int, length: int) -> S:
        """The state before the first step, for `batch` rows and windows of `length` columns."""
        ...

    def step(self, state: S, view: StepView) -> tuple[S, Decision]:
        """Choose the positions to commit, remask and edit."""
        ...


AnyDecoder = Decoder[Any]
