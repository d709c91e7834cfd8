"""How many tokens each forward pass should reveal: exact dynamic programming on an error table.

For Learnable Sampler Distillation (LSD, arXiv:2509.19962) on networks without a time input. The
paper learns step sizes; if positions are ranked, a step size is a number of tokens.

Shapes: K masks of a block, N forward passes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.options import integer


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """e_m(n): mistakes among the n best of m ranked masks, summed over the samples of full blocks.

    A mistake is a position whose arg max differs from the teacher's final token. If every m has
    equally many samples, the sums are integers, so that equally good schedules tie exactly.
    """

    mistakes: Tensor  # float64 [K + 1, K + 1], inf where n > m
    samples: int  # of the m with the most samples; dividing by it gives the mean of a block

    @classmethod
    def of(cls, wrong: Iterable[Sequence[Sequence[int]]], sizes: Sequence[int]) -> "ErrorTable":
        """Sum the ranks at which rows were wrong.

        Args:
            wrong: for each row, and each of its masks from first to last, the ranks (from 0)
                that were mistakes in the state before that mask was revealed.
            sizes: masks of each block of a row; the first block has K.
        """
        longest = max(sizes)
        left = [size - n for size in sizes for n in range(size)]
        hits = torch.zeros(longest + 1, longest, dtype=torch.int64)
        samples = torch.zeros(longest + 1, dtype=torch.int64)
        for row in wrong:
            pairs = [(m, rank) for m, ranks in zip(left, row, strict=True) for rank in ranks]
            if pairs:
                index = tuple(torch.tensor(pairs).T)
                hits.index_put_(index, torch.ones_like(index[0]), accumulate=True)
            samples += torch.bincount(torch.tensor(left), minlength=longest + 1)
        most = int(samples.max())
        weight = most / samples.clamp(min=1).double()
        sums = hits.cumsum(-1).double() * weight[:, None]
        mistakes = torch.cat((torch.zeros_like(sums[:, :1]), sums), 1)
        counts = torch.arange(longest + 1)
        return cls(mistakes.masked_fill(counts > counts[:, None], torch.inf), most)

    def mixed(self, other: "ErrorTable") -> "ErrorTable":
        """The table over the samples of both."""
        return ErrorTable(self.mistakes + other.mistakes, self.samples + other.samples)

    def predicted(self, counts: Sequence[int]) -> float:
        """Mean mistakes of a block: sum_k e_(m_k)(n_k), m_(k+1) = m_k - n_k."""
        left, total = self.mistakes.shape[0] - 1, 0.0
        for count in counts:
            total += float(self.mistakes[left, count])
            left -= count
        return total / self.samples

    def best(self, forwards: int) -> tuple[int, ...]:
        """The counts n_1 .. n_N >= 1 with sum K that minimise sum_k e_(m_k)(n_k).

        E_1(m) = e_m(m); E_k(m) = min_n e_m(n) + E_(k-1)(m - n). Ties go to the least sum of n^2, so
        that a flat table gives even steps, and then to smaller counts first. O(N K^2).

        Raises:
            ValueError: there are more forward passes than masks, or none.
        """
        cost = self.mistakes
        length = cost.shape[0] - 1
        integer("forwards", forwards, least=1, most=length)
        masks = torch.arange(length + 1)
        rest = masks[:, None] - masks  # [m, n]: masks left after revealing n of m
        valid, rest = (rest >= 0) & (masks >= 1), rest.clamp(min=0)
        squares = masks.square()
        total, even = cost.diagonal().clone(), squares.clone()
        total[0] = torch.inf
        choices: list[Tensor] = []
        for _ in range(forwards - 1):
            sums = (cost + total[rest]).masked_fill(~valid, torch.inf)
            total = sums.amin(-1)
            among = (sums == total[:, None]) & sums.isfinite()
            spread = (squares + even[rest]).masked_fill(~among, torch.iinfo(torch.int64).max)
            even, choice = spread.min(-1)
            even = even.where(total.isfinite(), 0)
            choices.append(choice)
        counts, left = [], length
        for choice in reversed(choices):
            counts.append(int(choice[left]))
            left -= counts[-1]
        return (*counts, left)
