"""Memory of a call, and bits that depend on no block, batch or number of threads.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.bench.baselines import float64_path
from dlm.bench.memory import peak_extra_bytes
from dlm.kernels import STATISTICS, NoiseKey, TokenStatistics, tiles, token_statistics
from dlm.kernels.scan import length
from dlm.kernels.tiles import CPU_BLOCK, CPU_GRAIN, TILE, TiledLogits

CPU = torch.device("cpu")


def random_logits(num_rows: int, vocabulary: int) -> Tensor:
    return 3 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(0))


def peak(logits: Tensor, wanted: Collection[str], options: dict[str, Any]) -> int:
    """Most bytes that torch's allocator held at once for one call, its inputs apart."""
    num_rows, vocabulary = logits.shape
    suppressed = torch.arange(vocabulary) >= vocabulary - 100
    index = torch.arange(num_rows)
    options = {"key": NoiseKey(0, index, index, index), "tokens": index, **options}
    found = peak_extra_bytes(
        lambda: token_statistics(logits, wanted, suppressed=suppressed, **options), CPU
    )
    assert found > 0
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_below_one_percent_of_the_same_rows_in_float64(
    temperature: float, dtype: torch.dtype
) -> None:
    """As `dlm bench sampling` measures it: what a step needs, against float64 of those rows."""
    logits = random_logits(32, 126_464).to(dtype)
    usual = peak_extra_bytes(lambda: float64_path(logits, temperature), CPU)
    assert usual >= 2 * 32 * 126_464 * 8
    for wanted in ({"confidence"}, {"confidence", "margin", "entropy"}):
        assert peak(logits, wanted, {"temperature": temperature}) < 0.01 * usual


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 50},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 5000, "top_p": 0.9},
        {"top": 300},
        {"temperature": 0.7, "top": 5, "law": "sampling", "scale": torch.linspace(0.5, 2, 32)},
        {"top_p": 0.9, "top": 200, "law": "sampling", "scale": torch.linspace(1.5, 2, 32)},
    ],
)
def test_memory_stays_below_one_percent_of_float64(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Of one float64 copy of the logits of a 256-token canvas; the usual path holds three."""
    logits = random_logits(32, 126_464).to(dtype)
    assert peak(logits, STATISTICS, options) < 0.01 * 256 * 126_464 * 8


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives back the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}])
@pytest.mark.parametrize("vocabulary", [3, 7, 15])
def test_no_bit_depends_on_the_batch(vocabulary: int, filters: dict[str, Any]) -> None:
    """In rows that no vector of a CPU holds a whole number of."""
    logits, index = random_logits(200, vocabulary), torch.arange(200)
    options: dict[str, Any] = {"temperature": 0.7, "law": "sampling", **filters}

    def of(rows: slice) -> TokenStatistics:
        place = index[rows]
        key = NoiseKey(0, place, place, place)
        tokens = place % vocabulary
        return token_statistics(logits[rows], STATISTICS, tokens=tokens, key=key, **options)

    whole = of(slice(200))
    alone = [of(slice(row, row + 1)) for row in range(200)]
    for name in ("sampled", "maximum", *STATISTICS):
        each = torch.cat([getattr(one, name) for one in alone])
        assert torch.equal(each, getattr(whole, name)), name


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_torch_raises_to_the_same_bits_at_every_place(number: int) -> None:
    """Of the count, of the place and of the threads: why rows do not depend on their batch."""
    torch.set_num_threads(number)
    values = -87 * torch.rand(5 * CPU_GRAIN, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([part.exp() for part in values.split(32)])
    for count in (1, 5, 31, 150, 2049, CPU_GRAIN + 1, 2 * CPU_GRAIN - 40, 3 * CPU_GRAIN + 5):
        for first in (0, 1, 13):
            found = values.clone()[first : first + count].exp_()
            assert torch.equal(found, expected[first : first + count]), (count, first)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_bit_depends_on_the_number_of_threads(temperature: float) -> None:
    logits, index = random_logits(3, 100_003), torch.arange(3)
    options: dict[str, Any] = {"temperature": temperature, "key": NoiseKey(0, index, index, index)}
    found = []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        found.append(token_statistics(logits, STATISTICS, tokens=index, **options))
    for name in ("sampled", "maximum", *STATISTICS):
        assert all(torch.equal(getattr(one, name), getattr(found[0], name)) for one in found), name


@pytest.mark.usefixtures("threads")
def test_blocks_grow_with_the_threads_within_a_share_of_the_logits() -> None:
    def most(logits: Tensor, temporaries: int) -> int:
        tiled = TiledLogits.of(logits, None)
        return TILE * max(
            length(rows) * length(part) for rows, part in tiled.blocks(temporaries, whole=False)
        )

    few, many = torch.zeros(8, 1), torch.zeros(512, 1)
    few, many = few.expand(-1, 126_464), many.expand(-1, 126_464)
    torch.set_num_threads(1)
    assert CPU_BLOCK // 2 < most(many, 1) <= CPU_BLOCK
    assert CPU_BLOCK // 4 < most(many, 2) <= CPU_BLOCK // 2
    torch.set_num_threads(16)
    assert most(few, 1) <= CPU_BLOCK
    assert 12 * CPU_GRAIN < most(many, 1) <= 16 * CPU_GRAIN < few.numel()
    assert tiles.CPU_SHARE * most(many, 1) <= many.numel()
