"""Value types shared by the runtime and the decoders.

Shapes: B rows, L canvas, W window, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from dlm.options import known

S = TypeVar("S")

STATISTICS = frozenset(
    {"confidence", "margin", "entropy", "token_probability", "uniform", "logits"}
)
"""What `Decoder.needs` may name: the optional fields of `StepView`."""


@dataclass(frozen=True, slots=True)
class StepView:
    """What a decoder may read in one denoising step. Read-only.

    Fields typed `Tensor | None` hold a tensor when the decoder names them in `needs`. Committed
    columns are measured too where the decoder declares `mutates_committed` or needs
    `token_probability`; columns that are not measured hold 0.
    """

    tokens: Tensor  # int64 [B, W], x_t
    masked: Tensor  # bool [B, W], open for committing
    sampled: Tensor  # int64 [B, W], x_0 drawn by the runtime, where measured
    positions: Tensor  # int64 [B, W], canvas index of each column
    block_start: Tensor  # int64 [B], canvas index of the first position of the block
    step: Tensor  # int64 [B], forwards already spent on this block
    quota: Tensor  # int64 [B], fewest commits now for the block to keep its forwards budget
    editable: Tensor  # bool [B, W], committed and open for remasking and editing
    confidence: Tensor | None = None  # float32 [B, W], p(sampled), untempered
    margin: Tensor | None = None  # float32 [B, W], largest minus second largest probability
    entropy: Tensor | None = None  # float32 [B, W], nats
    token_probability: Tensor | None = None  # float32 [B, W], probability of `tokens`
    uniform: Tensor | None = None  # float32 [B, W], U(0, 1) noise, fresh at every step
    logits: Tensor | None = None  # [B, W, V], model dtype, banned tokens at -inf

    def want(self, name: str) -> Tensor:
        """The optional field `name`, which the decoder declared in `needs`."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"{name!r} was not computed: name it in the decoder's `needs`")
        return value


@dataclass(frozen=True, slots=True)
class Decision:
    """Which positions of the window change."""

    commit: Tensor  # bool [B, W], masked positions that take `sampled`
    remask: Tensor | None = None  # bool [B, W], committed positions that turn into mask
    edit: Tensor | None = None  # bool [B, W], committed positions that take `sampled`


class Decoder(Protocol[S]):
    """An unmasking policy: a frozen dataclass of hyperparameters, no hidden state.

    A decoder never calls the model, samples, writes tokens or syncs with the host. Its state is
    `None`, a tensor or a (named) tuple of those, with a leading row axis: the runtime drops and
    reorders rows of it. One that declares nothing gets every statistic but `logits`, and may
    remask and edit; to declare saves work.
    """

    paper: ClassVar[str]
    """Where the rule comes from, such as "arXiv:2502.09992"."""

    needs: ClassVar[frozenset[str]]
    """Names out of `STATISTICS` that `step` reads."""

    mutates_committed: ClassVar[bool]
    """Whether decisions may remask or edit."""

    def init_state(self, batch: int, length: int) -> S:
        """State before the first step, for `batch` rows and canvas length `length`."""
        ...

    def step(self, state: S, view: StepView) -> tuple[S, Decision]:
        """Choose the positions to commit, remask and edit."""
        ...


AnyDecoder = Decoder[Any]


def needs_of(decoder: AnyDecoder) -> frozenset[str]:
    """The statistics a decoder reads: those it declares, else all but `logits`.

    Raises:
        ValueError: it declares something else than a set of known names.
    """
    needs: object = getattr(decoder, "needs", STATISTICS - {"logits"})
    if not isinstance(needs, frozenset | set):
        raise ValueError(
            f"{type(decoder).__name__}.needs must be a set of statistics, got {needs!r}"
        )
    for name in needs:
        known(f"statistic needed by {type(decoder).__name__}", name, STATISTICS)
    return frozenset(needs)


def may_mutate(decoder: AnyDecoder) -> bool:
    """Whether a decoder may remask or edit: what it declares, else yes."""
    return bool(getattr(decoder, "mutates_committed", True))
