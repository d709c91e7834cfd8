"""Generations on a device apart: nothing of the host meets what lies there, nor crosses in a step.

A CPU lets all tensors meet. Here those of the network, and all that is made of them, say that they
lie on another device, and compute what they hold on the CPU: a rule of devices that is broken on a
GPU is broken here, too.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap
from traceback import walk_stack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dlm
from dlm import binding
from dlm.background import background
from dlm.decoders import DECODERS
from dlm.decoders.base import Stateless
from dlm.execution import Execution
from dlm.host import send
from dlm.models.model import Model
from dlm.packing import Packing
from dlm.runtime import Loop
from dlm.traits import Traits
from dlm.types import Decision, StepView

Decoding = Callable[[str], dict[str, Any]]

APART = torch.device("meta")
"""The one device but the CPU that every torch can name."""
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]
READS = (  # of values, or of how many there are
    "_local_scalar_dense", "equal", "is_nonzero", "allclose", "nonzero", "masked_select",
    "bincount", "_unique", "_unique2", "unique_dim", "unique_consecutive",
)  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_p": 0.9, "min_p": 0.01},
    {"min_p": 0.05, "temperature": 0.0, "decoder": "dream"},
    {"cfg_scale": 1.5, "cache": "dual"},
    {"logit_bias": {5: 2.0}, "suppress_tokens": [7], "begin_suppress_tokens": [9]},
    {"return_trajectory": True, "return_order": True, "return_top_tokens": 3},
    {"stop": ["1"], "batch_size": 1, "pad_after_eos": True},
    {"steps": 7, "position_temperature": 0.5, "confidence_eos_eot_inf": True},
    {"gen_length": [5, 13, 3], "cache": "prefix"},
    {"refresh_every": 2, "refresh_around": 3, "cache": "dual"},
    {"refresh_every": 2, "refresh_prompt_every": 3, "cache": "prefix"},
    {"refresh_answer_every": 5, "refresh_prompt_every": 9, "cache": "dual"},
    {"refresh_decoded_every": 4, "cache": "dual", "cfg_scale": 0.5, "suffix_window": 2},
    {"decoder": "lopa", "cache": "dual", "return_top_tokens": 2},
]


class Apart(Tensor):
    """A tensor of the device apart."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Apart":
        made: Apart = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=APART,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        return compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        """What torch has of its own tensors alone."""
        assert not in_step(), "a step reads the device: tolist"
        return self.held.tolist()


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of what it is given or told."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in given if isinstance(one, Apart)]
    host = [one for one in given if not isinstance(one, Apart)]
    assert all(one.device != APART for one in host), f"a device without memory: {func}"
    here = any(one.dim() for one in host)
    name, wanted = func.overloadpacket.__name__, kwargs.get("device")
    goes = bool(there) if wanted is None else torch.device(wanted) == APART
    copies = name in ("_to_copy", "copy_")
    crosses = (here and there) or (bool(given) and goes != bool(there))
    if in_step():
        masks = any(one.dtype in (torch.bool, torch.uint8) for one in given[1:])
        reads = name in READS or (name.startswith("index") and masks)
        assert not reads, f"a step reads the device: {func}"
        assert not crosses, f"a step crosses to another device: {func}"
    else:  # an index may be of the host
        assert not crosses or copies or name.startswith("index"), f"of two devices: {func}"
    told = kwargs if wanted is None else {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(held, args), **tree_map(held, told))
    for one in given:
        if out is held(one):  # written in place
            return one
    return tree_map(lambda one: Apart(one) if type(one) is Tensor else one, out) if goes else out


def held(value: Any) -> Any:
    return value.held if isinstance(value, Apart) else value


def in_step() -> bool:
    """Within a step, but for what the host lays out and sends through pinned memory."""
    codes = {frame.f_code for frame, _ in walk_stack(None)}
    sent = {send.__code__, Packing.of.__func__.__code__}  # type: ignore[attr-defined]
    return Loop.step.__code__ in codes and not codes & sent


def on_the_host(index: Any) -> Any:
    return torch.tensor(index, dtype=torch.int64) if isinstance(index, list) else index


class Computed(TorchDispatchMode):
    """Makes new tensors where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Told(TorchFunctionMode):
    """`torch.tensor`, and an index that is a list, go to a device behind the operations' back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(map(on_the_host, index)), *args[2:])
        numbers = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        device = kwargs.pop("device", None) if numbers else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


class There(Model):
    """A model whose network lies on the device apart."""

    device = APART


@contextmanager
def apart() -> Iterator[None]:
    """Shapes stay, as on a GPU; a tensor of inference mode cannot be held by another one."""
    with pytest.MonkeyPatch.context() as patch, Computed(), Told():  # type: ignore[no-untyped-call]
        patch.setattr(torch, "inference_mode", torch.no_grad)
        patch.setattr(binding, "background", torch.no_grad()(unwrap(background)))
        patch.setattr(Execution, "of", lambda model: Execution(static=True))
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    """The built-in model."""
    return dlm.load()


@pytest.fixture(scope="module")
def there(model: Model) -> Model:
    """The same on the device apart."""
    network = copy.deepcopy(model.network)
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(Apart(weight.detach()), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Apart(buffer)
    return There(network, model.tokenizer, model.spec)


def check(model: Model, there: Model, **options: Any) -> None:
    """Decode what is decoded on a CPU."""
    rows = ["Sudoku: 3102200002100320", "Compute: 3*8", "1"]
    usual: dict[str, Any] = {"gen_length": 9, "block_length": 4, "seed": 3, "temperature": 0.8}
    wanted = dlm.generate(model, rows, **usual | options)
    with apart():
        found = dlm.generate(there, rows, **usual | options)
    assert (found.tokens, found.forwards) == (wanted.tokens, wanted.forwards)


@pytest.mark.one_in(8)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_no_decoder_mixes_devices(
    model: Model, there: Model, decoding: Decoding, decoder: str, cache: str
) -> None:
    few = {"decoder_options": {"loop_steps": 2}} if decoder == "remdm" else {}
    check(model, there, **{**decoding(decoder), **few, "cache": cache})


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_option_mixes_devices(model: Model, there: Model, options: dict[str, Any]) -> None:
    check(model, there, **options)


@pytest.mark.parametrize("decoder", ["threshold", "ssd"])
def test_no_constraint_mixes_devices(model: Model, there: Model, decoder: str) -> None:
    """Rows of two forms, and one of none."""
    forms = dlm.Constraint.regex(model, "[0-9]{3,9}"), dlm.Constraint.choice(model, ["yes", "no"])
    check(model, there, decoder=decoder, constraint=[*forms, None])


def test_what_mixes_devices_is_noticed() -> None:
    with apart():
        one = torch.arange(3, device=APART)
        assert (one + 1).tolist() == [1, 2, 3]
        assert one[[2]].tolist() == torch.tensor([2], device=APART).tolist() == [2]
        with pytest.raises(AssertionError, match="of two devices"):
            one + torch.arange(3)
        with pytest.raises(AssertionError, match="of two devices"):
            torch.where(one > 1, one, torch.arange(3))


@dataclass(frozen=True)
class Careless(Stateless):
    """Commits everything, but asks something first."""

    ask: Callable[[Tensor], Any]

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        self.ask(view.masked)
        return None, Decision(view.masked)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda masked: masked.sum().item(), "reads the device"),
        (lambda masked: masked.tolist(), "reads the device"),
        (lambda masked: torch.equal(masked, masked), "reads the device"),
        (lambda masked: masked[masked], "reads the device"),
        (lambda masked: masked.clone().index_put_((masked,), masked.any()), "reads the device"),
        (lambda masked: masked.nonzero(), "reads the device"),
        (lambda masked: masked & torch.ones(masked.shape[1]).bool(), "crosses"),
        (lambda masked: torch.ones(masked.shape[1]).to(masked.device), "crosses"),
        (lambda masked: masked.cpu(), "crosses"),
        (lambda masked: masked[:, [0]], "crosses"),
    ],
)
def test_a_step_that_leaves_its_device_is_noticed(
    model: Model, there: Model, ask: Callable[[Tensor], Any], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        check(model, there, decoder=Careless(ask))
