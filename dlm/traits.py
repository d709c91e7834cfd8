"""What a decoder declares about itself; the runtime supplies exactly that.

Shapes: B rows, N blocks of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlm.options import boolean, integer, known
from dlm.types import STATISTICS, AnyDecoder

CACHES = ("none", "prefix", "dual")
UNDECLARED = STATISTICS - {
    "logits",
    "leave_one_out",
    "top_tokens",
    "position_noise",
    "branch_noise",
}
"""What a decoder gets if it declares no `needs`."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The declarations of a decoder, with defaults for missing ones.

    Raises:
        ValueError: a method is missing, or a declaration has the wrong kind.
    """

    name: str  # name of its class, for messages
    needs: frozenset[str]  # names from `STATISTICS` that `step` reads
    mutates_committed: bool  # whether decisions may remask or edit
    reads_committed: bool
    """Whether committed columns are measured; by default if it mutates them, or needs
    `token_probability`."""
    cross_block: bool  # whether the window spans all blocks so far
    blind: bool  # whether the choice of positions ignores the sampled tokens
    scores: str  # distribution measured: the "model", or the tempered and filtered "sampling"
    top: int  # K, how many of the most likely tokens a view lists
    caches: tuple[str, ...]  # key-value caches it is correct with
    adjust: Callable[..., Any] | None  # (state, view) -> (state, Adjustment), before sampling
    adjust_needs: frozenset[str]  # statistics of the unchanged logits that `adjust` reads
    max_forwards: Callable[[Tensor, Tensor], Tensor] | None
    """(blanks, limit), int64 [B, N] each, to the most forward passes of each block, [B, N].

    Without it, every forward pass must commit more than it remasks, and a block takes at most as
    many passes as it has blanks."""
    ahead: int  # blocks after the active one that may change too; by default 0
    open: Callable[..., Any] | None
    """(state, view) to (state, int64 [B]), with blocks ahead: how many columns of its window the
    next forward pass may change. The view has no statistics. Open columns stay open."""
    branches: int  # C, variants of a row evaluated by every forward pass; by default 1
    choose: Callable[..., Any] | None  # (state, view of all) -> int64 [B], with branches

    @classmethod
    def of(cls, decoder: AnyDecoder) -> "Traits":
        """Read and validate a decoder's declarations."""
        name = type(decoder).__name__
        check_methods(decoder, name)
        needs = names(name, "needs", getattr(decoder, "needs", UNDECLARED))
        cross_block = boolean(f"{name}.cross_block", getattr(decoder, "cross_block", False))
        mutates = boolean(f"{name}.mutates_committed", getattr(decoder, "mutates_committed", True))
        reads = getattr(decoder, "reads_committed", mutates or "token_probability" in needs)
        usual = ("none",) if cross_block else CACHES
        caches = getattr(decoder, "caches", usual)
        if not isinstance(caches, tuple):
            raise ValueError(f"{name}.caches must be a tuple of names, got {caches!r}")
        for cache in caches:
            known(f"cache of {name}", cache, CACHES)
        branches = integer(f"{name}.branches", getattr(decoder, "branches", 1), least=1)
        if branches > 1:
            check_branches(decoder, name, mutates=mutates, cross_block=cross_block)
        elif "branch_noise" in needs:
            raise ValueError(
                f"{name}.needs must not name 'branch_noise', as branches are not above 1"
            )
        ahead = integer(f"{name}.ahead", getattr(decoder, "ahead", 0), least=0)
        if ahead and (mutates or cross_block or branches > 1):
            raise ValueError(
                f"{name}.ahead must be 0 with mutates_committed, cross_block or branches, "
                f"got {ahead}"
            )
        opens = getattr(decoder, "open", None) if ahead else None
        if ahead and not callable(opens):
            raise ValueError(f"{name}.open must be a method, as ahead is above 0")
        return cls(
            name=name,
            needs=needs,
            mutates_committed=mutates,
            reads_committed=boolean(f"{name}.reads_committed", reads),
            cross_block=cross_block,
            blind=boolean(f"{name}.blind", getattr(decoder, "blind", False)),
            scores=known(
                f"{name}.scores", getattr(decoder, "scores", "model"), ("model", "sampling")
            ),
            top=integer(
                f"{name}.top", getattr(decoder, "top", 0), least=int("top_tokens" in needs)
            ),
            caches=caches,
            adjust=getattr(decoder, "adjust", None),
            adjust_needs=names(name, "adjust_needs", getattr(decoder, "adjust_needs", frozenset())),
            max_forwards=getattr(decoder, "max_forwards", None),
            ahead=ahead,
            open=opens,
            branches=branches,
            choose=getattr(decoder, "choose", None) if branches > 1 else None,
        )

    @property
    def order_only(self) -> bool:
        """Whether decisions need no logits, so that only committed positions must be projected."""
        quiet = self.needs <= {"uniform", "position_noise"}
        return self.blind and quiet and self.adjust is None and self.branches == 1

    def settled(self, row: list[int], begin: int, block_start: int, mask_id: int) -> int:
        """First position of an unfinished row that a later forward pass may change.

        Nothing changes before the first mask. If the decoder may take tokens back, nothing changes
        before its block. If it may reach back to earlier blocks, anything may change.

        Args:
            row: tokens up to the end of the decoded span.
            begin: start of that span.
            block_start: start of the block that was decoded last.
            mask_id: marks what is not decoded yet.
        """
        if self.cross_block:
            return begin
        if self.mutates_committed:
            return block_start
        return row.index(mask_id, begin) if mask_id in row else len(row)

    @property
    def reads_masks(self) -> bool:
        """Whether the decoder reads predictions at masks only, and changes nothing else."""
        more = self.mutates_committed or self.reads_committed or self.branches > 1
        return not (more or self.needs & {"logits", "leave_one_out"})

    @property
    def has_path(self) -> bool:
        """Whether the sequence of tokens that a row draws has a well-defined probability."""
        return self.blind and not self.mutates_committed and self.branches == 1


def check_methods(decoder: AnyDecoder, owner: str) -> None:
    """Reject a decoder without the methods that the runtime calls.

    Raises:
        ValueError: one is missing, or is no method.
    """
    for attribute in ("init_state", "step", "adjust", "max_forwards"):
        method = getattr(decoder, attribute, None)
        absent = method is None and attribute in ("adjust", "max_forwards")
        if not (absent or callable(method)):
            raise ValueError(f"{owner}.{attribute} must be a method, got {method!r}")


def check_branches(decoder: AnyDecoder, owner: str, *, mutates: bool, cross_block: bool) -> None:
    """Reject a decoder with branches that cannot choose among them, or whose traits exclude them.

    Raises:
        ValueError: a method is missing, or a method or declaration conflicts with branches.
    """
    if not callable(getattr(decoder, "choose", None)):
        raise ValueError(f"{owner}.choose must be a method, as branches are above 1")
    for attribute, given in (("mutates_committed", mutates), ("cross_block", cross_block)):
        if given:
            raise ValueError(f"{owner}.{attribute} must be False, as branches are above 1")
    if getattr(decoder, "adjust", None) is not None:
        raise ValueError(f"{owner}.adjust must not be there, as branches are above 1")


def names(owner: str, attribute: str, value: object) -> frozenset[str]:
    """A set of statistics, without "sampled", which every view has.

    Raises:
        ValueError: it is not a set, or a name is unknown.
    """
    if not isinstance(value, frozenset | set):
        raise ValueError(f"{owner}.{attribute} must be a set of statistics, got {value!r}")
    needed = frozenset(value) - {"sampled"}
    for name in needed:
        known(f"statistic needed by {owner}", name, STATISTICS)
    return needed
