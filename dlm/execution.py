"""How steps are run: one kernel at a time, or recorded once and played again."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from dlm.canvas import Canvas
from dlm.lanes import Budget, Lane, Lanes, Workspace
from dlm.models.experts import Experts
from dlm.models.model import Model, untouched
from dlm.options import names_checked
from dlm.progress import Due, Progress, Scope
from dlm.prompts import check_model
from dlm.recording import GraphRecorder, pools

if TYPE_CHECKING:
    from dlm.runtime import Outcome

Result = TypeVar("Result")
STRIDE: Final = 64
"""Tokens that the length of a recorded canvas is a multiple of, so that few lengths are met."""
PARTS: Final = 8
"""Steps in which columns are left out of a window where shapes stay, so that few are met."""
SHARE: Final = 16
"""What is kept of generations takes at most one part in so many of a device's memory, and so do
prompts that are kept."""
KNOWN: Final = ("torch", "transformers", "dlm")
"""Packages whose modules do the same as long as `state_of` them is the same."""
PLAIN: Final = (bool, int, float, str)  # attributes of modules that are compared
LANES: Final[weakref.WeakKeyDictionary[nn.Module, Lanes]] = weakref.WeakKeyDictionary()
"""Of each network whose steps were recorded."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What suits a device."""

    static: bool = False
    """Whether shapes stay as they are from step to step: every column of the window is measured
    rather than a list of those that are wanted, and a row that is done stays, changing nothing,
    until half of the rows are. Both save what only the host can decide, at the cost of work that
    a GPU hardly notices."""

    lanes: Lanes | None = None
    """Where recordings are kept; None where steps are not recorded."""

    @classmethod
    def of(cls, model: Model) -> "Execution":
        """Steps recorded as CUDA graphs where all of the network is on one GPU; else plain ones.

        A subclass of `Model` is not recorded: what it does at its calls would be done once. Nor
        are networks of transformers, attention that takes no masks and experts that are looped
        over, which ask the device, networks that are cut, whose processes speak to each other, and
        those whose steps could not be recorded before.
        """
        if model.device.type != "cuda":
            return cls()
        recorded = (
            type(model) is Model
            and model.spec.caches
            and model.takes_masks
            and (getattr(model.network, "tp_size", None) or 1) == 1
            and {weight.device for weight in model.network.parameters()} == {model.device}
            and not loops_over_experts(model.network)
        )
        lanes = lanes_of(model) if recorded else None
        return cls(static=True, lanes=None if lanes is None or lanes.failed else lanes)

    def columns(self, longest: int, most: int) -> int:
        """Columns of a canvas for rows of up to `longest` tokens, of `most` the network can place.

        Where steps are recorded one of few lengths, so that later generations meet it again.
        """
        return longest if self.lanes is None else min(most, -(-longest // STRIDE) * STRIDE)

    def blocks(self, count: int) -> int:
        """Blocks of a canvas for rows of up to `count`, likewise one of few numbers."""
        return count if self.lanes is None else power(count)

    def rounded(self, due: Due, width: int) -> Due:
        """The same in one of few shapes, on a canvas of `width` columns.

        Queries are rounded up, and where steps are recorded so are the rows of which more than a
        window is computed.
        """
        told, due = due, due.seen()
        if not self.static:
            return due
        reach, tails, rooms = min(width, power(due.reach)), due.tails, due.rooms
        spared = due.spared - due.spared % max(1, power(due.width) // PARTS)
        if Scope.ANSWER in due.scopes:
            tails = [min(width, -(-tail // STRIDE) * STRIDE) for tail in tails]
        if due.scope is None and self.lanes is not None:
            some = (due.scopes.count(scope) for scope in (Scope.ANSWER, Scope.ROW))
            answers, rows = (min(len(due.lengths), power(count)) for count in some)
            rooms = answers, rows
        across = due.across and min(width, -(-due.across // STRIDE) * STRIDE)
        found = replace(due, reach=reach, tails=tails, rooms=rooms, spared=spared, across=across)
        return told if found == told else found

    def stay(self, live: Sequence[bool]) -> list[int] | None:
        """Rows that remain in the batch; None as long as all do.

        Where shapes stay as they are half of the rows leave at a time, or three quarters, ...:
        those that go on, and others to make up the number.
        """
        if all(live):
            return None
        going = [row for row, goes in enumerate(live) if goes]
        if not self.static:
            return going
        count = len(live)
        while count // 2 >= max(1, len(going)):
            count //= 2
        over = [row for row, goes in enumerate(live) if not goes]
        return sorted([*going, *over[: count - len(going)]]) if count < len(live) else None

    def places(self, count: int) -> int:
        """Rows of a batch that `count` rows are put together in."""
        return power(count) if self.static else count

    def step(
        self, lane: Lane, work: Workspace, canvas: Canvas, progress: Progress, due: Due
    ) -> "Outcome":
        """A step; where memory is short once more kernel by kernel, without what is kept.

        As `in_memory`, with less to do before the device has work.
        """
        try:
            return work.steps(canvas, progress, due)
        except torch.OutOfMemoryError:
            if self.lanes is None:
                raise
        self.make_room([(lane, work)], canvas.tokens.device)
        return work.loop.step(canvas, progress, due)

    def in_memory(
        self,
        used: Sequence[tuple[Lane, Workspace]],
        device: torch.device,
        first: Callable[[], Result],
        then: Callable[[], Result],
    ) -> Result:
        """What the first call gives, or where memory is short the other, without what is kept."""
        try:
            return first()
        except torch.OutOfMemoryError:
            if self.lanes is None:
                raise
        self.make_room(used, device)
        return then()

    def make_room(self, used: Sequence[tuple[Lane, Workspace]], device: torch.device) -> None:
        """Give up what is kept; behind the `except`, where the error holds no tensors any more."""
        assert self.lanes is not None
        self.lanes.shed(used)
        pools(device).clear()
        torch.cuda.empty_cache()  # which nothing does while a step is recorded

    @contextmanager
    def lane(self, network: Any, beside: Lane | None = None) -> Iterator[Lane]:
        """Where one generation finds and leaves what is kept of others.

        Args:
            network: what it calls; not looked at with `beside`.
            beside: one that it has already, of the same network in the same state.
        """
        if self.lanes is None:
            yield Lane(None, None, Budget(0))
            return
        with self.lanes.taken(state_of(network) if beside is None else beside.state) as lane:
            yield lane


def power(count: int) -> int:
    """The least power of two that is no less than a count; 0 of 0."""
    return 1 << (count - 1).bit_length() if count > 0 else 0


def loops_over_experts(network: Any) -> bool:
    """Whether it asks the device which experts there is work for.

    transformers notes "eager" in the configuration of networks without experts, too.
    """
    if not any(isinstance(module, Experts) for module in network.modules()):
        return False
    chosen = getattr(network.config, "_experts_implementation", None)
    return chosen == "eager" or network.dtype == torch.float64


def lanes_of(model: Model) -> Lanes:
    """Those of a network on a GPU. They go with it, and others take their place on another GPU."""
    found, device = LANES.get(model.network), model.device
    if found is None or found.device != device:
        found = Lanes(partial(GraphRecorder, device), memory_of(device) // SHARE, device)
        LANES[model.network] = found
    return found


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


@names_checked
def release(model: Model) -> None:
    """Drop what is kept of a model's generations, and the memory of recordings that is not in use.

    `torch.cuda.empty_cache()` gives it back to the device. The next generation records anew.

    Raises:
        ValueError: what is given is no model.
    """
    check_model(model)
    LANES.pop(model.network, None)
    pools(model.device).clear()


def state_of(network: Any) -> tuple[Any, ...] | None:
    """What recordings of a network rest on, beside what its tensors hold and its classes do.

    None where a module may have more: one of an unknown package, with hooks, or with weights that
    are more than a tensor.
    """
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return None
    config = network.config
    parts: list[Any] = [*modes(), config._attn_implementation]
    parts.append(getattr(config, "_experts_implementation", None))
    for module in network.modules():
        if type(module).__module__.partition(".")[0] not in KNOWN or not untouched(module):
            return None
        plain = [each for each in vars(module).items() if isinstance(each[1], PLAIN)]
        parts.append((weakref.ref(module), *plain))  # an id may be that of another one later
    for tensor in (*network.parameters(), *network.buffers()):
        if type(tensor) not in (Tensor, nn.Parameter):
            return None
        parts.append((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()))
    return tuple(parts)


def modes() -> tuple[Any, ...]:
    """Settings of torch that decide which kernels a call asks for."""
    cuda = torch.backends.cuda
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.are_deterministic_algorithms_enabled(),
        cuda.matmul.fp32_precision,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_accumulation,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
