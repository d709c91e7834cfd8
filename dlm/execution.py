"""How steps run: kernel by kernel, or recorded once as CUDA graphs and replayed."""

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
from dlm.progress import ForwardPlan, Progress, Scope
from dlm.prompts import check_model
from dlm.recording import GraphRecorder, pools

if TYPE_CHECKING:
    from dlm.runtime import Outcome

Result = TypeVar("Result")
STRIDE: Final = 64
"""Lengths of a recorded canvas are multiples of this many tokens, so that few lengths occur."""
PARTS: Final = 8
"""With static shapes, columns are left out of a window in multiples of one part in so many."""
SHARE: Final = 16
"""The kept workspaces take at most one part in so many of a device's memory, and so does a prompt
cache."""
KNOWN: Final = ("torch", "transformers", "dlm")
"""Packages whose modules behave the same as long as their `state_of` is the same."""
PLAIN: Final = (bool, int, float, str)  # types of module attributes that `state_of` compares
LANES: Final[weakref.WeakKeyDictionary[nn.Module, Lanes]] = weakref.WeakKeyDictionary()
"""The lanes of each network whose steps were recorded."""


@dataclass(frozen=True, slots=True)
class Execution:
    """The execution strategy for a device."""

    static: bool = False
    """Whether shapes stay the same from step to step: every column of the window is measured,
    instead of a list of the wanted ones, and a finished row stays, unchanged, until half of the
    rows are finished. Both avoid decisions that need the host, at the cost of work that a GPU
    hardly notices."""

    lanes: Lanes | None = None
    """Where recordings are kept; None if steps are not recorded."""

    @classmethod
    def of(cls, model: Model) -> "Execution":
        """Steps recorded as CUDA graphs if the whole network is on one GPU; otherwise plain ones.

        Not recorded are:

        - subclasses of `Model`, as what their methods do would happen only once;
        - networks of transformers, attention that takes no masks, and experts in a loop, which
          synchronise with the device;
        - networks split over processes, as these communicate;
        - networks whose steps failed to record before.
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
        """Columns of a canvas for rows of up to `longest` tokens, at most the model's limit `most`.

        If steps are recorded, rounded up so that later generations meet the same length.
        """
        return longest if self.lanes is None else min(most, -(-longest // STRIDE) * STRIDE)

    def blocks(self, count: int) -> int:
        """Blocks of a canvas for rows of up to `count` blocks, rounded up likewise."""
        return count if self.lanes is None else power(count)

    def rounded(self, plan: ForwardPlan, width: int) -> ForwardPlan:
        """Round a plan to one of few shapes, on a canvas of `width` columns.

        Queries are rounded up. If steps are recorded, so is the number of rows of which more than a
        window is computed.
        """
        told, plan = plan, plan.seen()
        if not self.static:
            return plan
        reach, tails, rooms = min(width, power(plan.reach)), plan.tails, plan.rooms
        spared = plan.spared - plan.spared % max(1, power(plan.width) // PARTS)
        if Scope.ANSWER in plan.scopes:
            tails = [min(width, -(-tail // STRIDE) * STRIDE) for tail in tails]
        if plan.scope is None and self.lanes is not None:
            some = (plan.scopes.count(scope) for scope in (Scope.ANSWER, Scope.ROW))
            answers, rows = (min(len(plan.lengths), power(count)) for count in some)
            rooms = answers, rows
        across = plan.across and min(width, -(-plan.across // STRIDE) * STRIDE)
        found = replace(plan, reach=reach, tails=tails, rooms=rooms, spared=spared, across=across)
        return told if found == told else found

    def stay(self, live: Sequence[bool]) -> list[int] | None:
        """The rows that remain in the batch; None as long as all do.

        With static shapes, half of the rows leave at a time, or three quarters, and so on: the
        result is the unfinished rows, and finished ones to make up the number.
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
        """The batch size for `count` rows; a power of two with static shapes."""
        return power(count) if self.static else count

    def step(
        self, lane: Lane, work: Workspace, canvas: Canvas, progress: Progress, plan: ForwardPlan
    ) -> "Outcome":
        """Run a step; if memory runs out, drop what is kept and run it once more, kernel by kernel.

        Like `in_memory`, but with less host work before the device has something to do.
        """
        try:
            return work.steps(canvas, progress, plan)
        except torch.OutOfMemoryError:
            if self.lanes is None:
                raise
        self.make_room([(lane, work)], canvas.tokens.device)
        return work.loop.step(canvas, progress, plan)

    def in_memory(
        self,
        used: Sequence[tuple[Lane, Workspace]],
        device: torch.device,
        first: Callable[[], Result],
        then: Callable[[], Result],
    ) -> Result:
        """Call `first`; if memory runs out, drop what is kept and call `then` instead."""
        try:
            return first()
        except torch.OutOfMemoryError:
            if self.lanes is None:
                raise
        self.make_room(used, device)
        return then()

    def make_room(self, used: Sequence[tuple[Lane, Workspace]], device: torch.device) -> None:
        """Drop what is kept. Call it after the `except`, where the error holds no more tensors."""
        assert self.lanes is not None
        self.lanes.shed(used)
        pools(device).clear()
        torch.cuda.empty_cache()  # the allocator does not do this itself during a recording

    @contextmanager
    def lane(self, network: Any, beside: Lane | None = None) -> Iterator[Lane]:
        """A lane for one generation, which finds there what earlier ones left, and leaves its own.

        Args:
            network: the network that it runs; ignored if `beside` is given.
            beside: a lane it already has, of the same network in the same state.
        """
        if self.lanes is None:
            yield Lane(None, None, Budget(0))
            return
        with self.lanes.taken(state_of(network) if beside is None else beside.state) as lane:
            yield lane


def power(count: int) -> int:
    """The smallest power of two that is at least `count`; 0 for 0."""
    return 1 << (count - 1).bit_length() if count > 0 else 0


def loops_over_experts(network: Any) -> bool:
    """Whether the network asks the device which experts have work.

    transformers sets "eager" in the configuration of networks without experts, too.
    """
    if not any(isinstance(module, Experts) for module in network.modules()):
        return False
    chosen = getattr(network.config, "_experts_implementation", None)
    return chosen == "eager" or network.dtype == torch.float64


def lanes_of(model: Model) -> Lanes:
    """The lanes of a network on a GPU. They live as long as it does; moving it replaces them."""
    found, device = LANES.get(model.network), model.device
    if found is None or found.device != device:
        found = Lanes(partial(GraphRecorder, device), memory_of(device) // SHARE, device)
        LANES[model.network] = found
    return found


def memory_of(device: torch.device) -> int:
    """Memory of a GPU in bytes."""
    return int(torch.cuda.get_device_properties(device).total_memory)


@names_checked
def release(model: Model) -> None:
    """Drop what is kept of a model's generations, and memory of recordings that is not in use.

    `torch.cuda.empty_cache()` then returns it to the device. The next generation records again.

    Raises:
        ValueError: `model` is not a model.
    """
    check_model(model)
    LANES.pop(model.network, None)
    pools(model.device).clear()


def state_of(network: Any) -> tuple[Any, ...] | None:
    """What recordings of a network depend on, besides its tensors' contents and its classes' code.

    None if a module may depend on more: one from an unknown package, with hooks, or with weights
    that are not plain tensors.
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
        parts.append((weakref.ref(module), *plain))  # not an id, which another module may get later
    for tensor in (*network.parameters(), *network.buffers()):
        if type(tensor) not in (Tensor, nn.Parameter):
            return None
        parts.append((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()))
    return tuple(parts)


def modes() -> tuple[Any, ...]:
    """The torch settings that decide which kernels a call launches."""
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
