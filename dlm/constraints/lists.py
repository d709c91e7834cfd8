"""Lists of integers in one tensor, such as the incoming edges of each state."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Lists of integers of different lengths, concatenated."""

    numbers: Tensor  # int64 [sum of counts]
    begin: Tensor  # int64 [n], offset of each list
    count: Tensor  # int64 [n]

    @classmethod
    def grouped(cls, groups: Tensor, count: int) -> "Lists":
        """For each of `count` groups, the indices of its members in ascending order."""
        sizes = groups.bincount(minlength=count)
        return cls(groups.argsort(stable=True), sizes.cumsum(0) - sizes, sizes)

    def of(self, lists: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate some lists; also returns, for each number, which of `lists` it is from."""
        count = self.count[lists]
        whose = torch.arange(len(lists)).repeat_interleave(count)
        place = torch.arange(len(whose)) - (count.cumsum(0) - count)[whose]
        return self.numbers[self.begin[lists][whose] + place], whose
