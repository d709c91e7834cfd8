"""Lists of numbers in one tensor, such as what leads to each state."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Lists of numbers, end to end."""

    numbers: Tensor  # int64 [sum of counts]
    begin: Tensor  # int64 [n], where each list begins
    count: Tensor  # int64 [n]

    @classmethod
    def grouped(cls, groups: Tensor, count: int) -> "Lists":
        """For each of `count` groups the indices whose group it is, in order."""
        sizes = groups.bincount(minlength=count)
        return cls(groups.argsort(stable=True), sizes.cumsum(0) - sizes, sizes)

    def of(self, lists: Tensor) -> tuple[Tensor, Tensor]:
        """All numbers of some lists, and which of these each is of."""
        count = self.count[lists]
        whose = torch.arange(len(lists)).repeat_interleave(count)
        place = torch.arange(len(whose)) - (count.cumsum(0) - count)[whose]
        return self.numbers[self.begin[lists][whose] + place], whose
