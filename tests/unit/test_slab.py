"""Values whose tensors lie end to end."""

from dataclasses import dataclass

import torch
from torch import Tensor

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


def test_one_call_for_each_dtype() -> None:
    made = Slab(value(1))
    assert [buffer.dtype for buffer in made.buffers] == [torch.int64, torch.bool, torch.float32]


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
