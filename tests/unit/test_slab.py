"""Values whose tensors lie end to end."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlm.slab import ALIGNMENT, Slab
from dlm.tree import equal, mapped, tensors


@dataclass(frozen=True)
class Value:
    name: str
    whole: Tensor
    flags: Tensor
    parts: tuple[Tensor, Tensor | None, Tensor]


def value(begin: int) -> Value:
    """Sizes that end between two multiples of the alignment, one of nothing, one not contiguous."""
    whole = torch.arange(begin, begin + 3)
    flags = whole % 2 == 0
    parts = whole.new_zeros(0), None, (whole[:, None] * whole).t().float()[:, ::2]
    return Value("kept", whole, flags, parts)


def test_a_slab_begins_with_the_value_it_is_made_like() -> None:
    given = value(1)
    made = Slab(given)
    assert equal(made.value, given)
    given.whole.zero_()
    assert made.value.whole.tolist() == [1, 2, 3]


def test_values_are_taken_over() -> None:
    one, other = Slab(value(1)), Slab(value(2))
    one.copy(value(5))
    assert equal(one.value, value(5))
    places = [part.data_ptr() for part in tensors(one.value)]
    one.gather(value(7))
    assert equal(one.value, value(7))
    assert [part.data_ptr() for part in tensors(one.value)] == places
    other.follow(one)
    assert equal(other.value, value(7))
    one.gather(value(9))
    assert equal(other.value, value(7))


class Calls(TorchDispatchMode):
    """Names of what is asked of the device, views aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.made.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_one_call_for_each_dtype() -> None:
    made, other, given = Slab(value(1)), Slab(value(2)), mapped(Tensor.contiguous, value(3))
    with Calls() as calls:
        made.gather(given)
        other.follow(made)
    assert calls.made == ["cat"] * 3 + ["copy_"] * 3


def test_every_tensor_is_aligned() -> None:
    """As all that torch allocates is: kernels would be compiled once more."""
    for part in tensors(Slab(value(1)).value):
        assert part.storage_offset() * part.element_size() % ALIGNMENT == 0


def test_what_it_holds() -> None:
    made, wide = Slab(value(1)), mapped(Tensor.double, value(1))
    assert made.holds(value(3))
    assert not made.holds(wide)
    assert not made.holds(mapped(lambda part: part[None], value(1)))
    assert not made.holds((value(1), torch.zeros(1)))
    one, none = torch.zeros(2), None
    assert not Slab((one, none)).holds((none, one))
