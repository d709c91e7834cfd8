"""Value types shared by the runtime and the decoders.

Shapes: B rows, L canvas, W window, N blocks of a row, V vocabulary, K likeliest tokens, J
adjusted tokens of a position, C branches.
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

    Fields typed `Tensor | None` hold a tensor where the decoder names them in `needs`. Statistics
    are of the untempered model, unless the decoder declares other `scores` or adjusts logits: then
    of the law it scores by. Committed columns are measured too where `reads_committed` is true;
    undeclared it is for decoders that mutate committed tokens or need `token_probability`. What is
    not measured holds 0.
    """

    tokens: Tensor  # int64 [B, W], x_t
    masked: Tensor  # bool [B, W], open for committing
    sampled: Tensor  # int64 [B, W], x_0 drawn by the runtime, where measured
    positions: Tensor  # int64 [B, W], canvas index of each column
    block_start: Tensor  # int64 [B], canvas index of the first position of the block
    block_length: int  # positions of a block; a row may end before
    row_start: Tensor  # int64 [B], canvas index of the row's first blank
    row_stop: Tensor  # int64 [B], one past that of its last blank
    step: Tensor  # int64 [B], forwards already spent on this block
    limit: Tensor  # int64 [B], forwards the block may take in all, 0 for no limit
    quota: Tensor  # int64 [B], fewest commits now for the block to keep its forwards budget
    editable: Tensor  # bool [B, W], committed and open for remasking and editing
    confidence: Tensor | None = None  # float32 [B, W], p(sampled)
    margin: Tensor | None = None  # float32 [B, W], largest minus second largest probability
    entropy: Tensor | None = None  # float32 [B, W], nats
    token_probability: Tensor | None = None  # float32 [B, W], probability of `tokens`
    leave_one_out: Tensor | None = None  # float32 [B, W], p(tokens) of a mask in its place
    top_tokens: Tensor | None = None  # int64 [B, W, K], likeliest first
    top_probabilities: Tensor | None = None  # float32 [B, W, K], theirs
    uniform: Tensor | None = None  # float32 [B, W], U(0, 1) noise, fresh at every step
    position_noise: Tensor | None = None  # float32 [B, W], Gumbel noise times its temperature
    branch_noise: Tensor | None = None  # float32 [B, C, W], standard Gumbel noise; for `step` alone
    logits: Tensor | None = None  # [B, W, V], float, biased, banned tokens at -inf

    def want(self, name: str) -> Tensor:
        """The optional field `name`, which the decoder declared in `needs`."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            only = ", and read it in `step` alone" if name == "branch_noise" else ""
            raise ValueError(f"{name!r} was not computed: name it in the decoder's `needs`{only}")
        return value

    def apart(self) -> "StepView":
        """A copy of all but the logits, for a decoder that may write to it."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        shared = ("logits",)  # large, and read by nobody else
        copied = {k for k, v in given.items() if isinstance(v, Tensor) and k not in shared}
        return StepView(**{k: v.clone() if k in copied else v for k, v in given.items()})

    def listing(self, top: int) -> "StepView":
        """The same, with as many of the likeliest tokens, if it lists more; without, for 0."""
        tokens, p = self.top_tokens, self.top_probabilities
        if tokens is None or p is None or top >= tokens.shape[-1]:
            return self
        if not top:
            return replace(self, top_tokens=None, top_probabilities=None)
        fewer, of_them = (part[..., :top].contiguous() for part in (tokens, p))
        return replace(self, top_tokens=fewer, top_probabilities=of_them)

    def tempered(self, scores: Tensor) -> Tensor:
        """Scores to rank by at the position temperature T of the generation: s + T g.

        g is standard Gumbel noise, so that the best k are drawn without replacement from
        softmax(s / T) (Kool et al. 2019, arXiv:1903.06059). T = 0 leaves the scores alone.
        """
        return scores if self.position_noise is None else scores + self.position_noise

    @property
    def last(self) -> Tensor:
        """Whether the block has no forward left after this one, bool [B]."""
        return (self.limit > 0) & (self.step + 1 >= self.limit)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which positions of the window change."""

    commit: Tensor  # bool [B, W], masked positions that take `sampled`
    remask: Tensor | None = None  # bool [B, W], committed positions that turn into mask
    edit: Tensor | None = None  # bool [B, W], committed positions that take `sampled`
    hold: Tensor | None = None  # bool [B], rows whose block stays active even without a mask
    time: Tensor | None = None  # float32 [B], diffusion time reached, from 1 (noise) to 0 (data)
    lookahead: Tensor | None = None
    """bool [B, C, W], masked positions, not committed, that each branch of the next forward fills
    with `sampled`; None for none. `Decoder.choose` says which branch the row goes on with."""

    @property
    def changes(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is committed, edited and remasked."""
        return self.commit, self.edit, self.remask

    def without(self, rows: Tensor) -> "Decision":
        """The same, but nothing changes in the rows marked in bool [B]."""
        never = rows[:, None]
        commit, edit, remask = (
            None if x is None else x.masked_fill(never, False) for x in self.changes
        )
        assert commit is not None
        hold = None if self.hold is None else self.hold.masked_fill(rows, False)
        return Decision(commit, remask, edit, hold, self.time, self.lookahead)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """How a decoder changes the logits before tokens are sampled: (l + bonus) * scale."""

    scale: Tensor | None = None  # float32 [B], above 0: inverse temperature of the row
    scale_statistics: bool = True  # whether confidence and the others see the scale too
    tokens: Tensor | None = None  # int64 [B, W, J]
    bonus: Tensor | None = None  # float32 [B, W, J], added to the logits of `tokens`


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decoder may ask of the model it is about to decode, once a generation."""

    vocab_size: int
    mask_id: int
    device: torch.device
    blocks: int  # most blocks of a row
    block_length: int  # most positions of a block
    background: Callable[[], Tensor]
    """float32 [V], mean prediction on a canvas of masks, stop tokens apart from the others."""


class Decoder(Protocol[S]):
    """An unmasking policy: a frozen dataclass of hyperparameters, no hidden state.

    A decoder never calls the model, samples, writes tokens or syncs with the host. Its state is
    `None`, a tensor with a leading row axis, or a (named) tuple or frozen dataclass of those: the
    runtime drops and reorders rows of it. `init_state` runs under the model's device.

    With an attribute `branches` above 1 every forward evaluates so many variants of a row, at that
    many times the cost: those that the decision before it asked for in `lookahead`. A method
    `choose(state, view)` then says which one each row goes on with, int64 [B], out of a view whose
    fields have an axis of branches behind that of rows, and `step` sees that one. What it had
    filled is committed by this forward, which may be all that it commits; what others had filled is
    forgotten. Where no row tries anything, as at the first forward of all, one branch is evaluated
    and `choose` is not called; where other rows do, those of the row are alike.

    With an attribute `ahead` above 0 a window holds so many blocks behind the active one, which
    may change along with it. A method `open(state, view)` then says before each forward, out of a
    view without statistics, how many columns that is, int64 [B], with the state that goes on; what
    was open stays so. `step` sees the open ones as masked or editable and the others as neither,
    and no more columns than those of the blocks that are open in some row: a state is by row, not
    by column.

    Besides what is below it may have any of the attributes that `dlm.traits.Traits` lists. One
    that declares nothing gets every statistic that takes no forward or list of its own, and may
    remask and edit; to declare saves work. `dlm.decoders.base.Policy` has the usual values.
    """

    @property
    def paper(self) -> str:
        """Where the rule comes from, such as "arXiv:2502.09992"."""
        ...

    def init_state(self, batch: int, length: int) -> S:
        """State before the first step, for `batch` rows and windows of `length` columns."""
        ...

    def step(self, state: S, view: StepView) -> tuple[S, Decision]:
        """Choose the positions to commit, remask and edit."""
        ...


AnyDecoder = Decoder[Any]
