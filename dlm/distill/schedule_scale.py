"""The logit scale of one forward pass: a one-dimensional convex fit.

Shapes: M positions, V tokens that may be sampled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST, MOST = 0.5, 2.0
"""Scales outside this range are rejected: they would trade sample diversity for likelihood."""

STEP = 1e-9  # smaller Newton steps end the fit
STEPS = 100  # most Newton steps
FLOATS = 1 << 22  # float64 values processed at a time


@dataclass(frozen=True, slots=True)
class Alignment:
    """KL(p*_i || softmax(a l_i)), summed over positions, as a function of a; nats.

    p* are the teacher's distributions and l the student's logits, as in Learnable Sampler
    Distillation (LSD, arXiv:2509.19962), with KL instead of the paper's L2. No gradient passes
    through the network.
    """

    logits: Tensor  # float32 [M, V], l
    mean: Tensor  # float64 [M], E_p* l
    negentropy: Tensor  # float64 [M], sum p* ln p*

    @classmethod
    def of(cls, logits: Tensor, teacher: Tensor) -> "Alignment":
        """From student and teacher logits, floating point [M, V].

        Raises:
            ValueError: a logit is not finite.
        """
        if not (logits.isfinite().all() and teacher.isfinite().all()):
            raise ValueError("the network returned NaN or infinite logits")
        student = logits.float()
        means, entropies = [student.new_zeros(0).double()], [student.new_zeros(0).double()]
        for some, wise in zip(chunks(student), chunks(teacher.float()), strict=True):
            law = wise.double().log_softmax(-1)
            means.append((law.exp() * some.double()).sum(-1))
            entropies.append((law.exp() * law).sum(-1))
        return cls(student, torch.cat(means), torch.cat(entropies))

    @classmethod
    def join(cls, parts: "list[Alignment]") -> "Alignment":
        """Concatenate the positions of one or more alignments."""
        columns = zip(*((p.logits, p.mean, p.negentropy) for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def loss(self, scale: float) -> float:
        """Mean KL per position at a, nats; 0 without positions."""
        return float(self.divergence(scale).mean()) if len(self.mean) else 0.0

    def divergence(self, scale: float) -> Tensor:
        """KL of each position at a, float64 [M], nats."""
        parts = [(scale * some.double()).logsumexp(-1) for some in chunks(self.logits)]
        return self.negentropy - scale * self.mean + torch.cat([self.mean[:0], *parts])

    def slopes(self, scale: float) -> tuple[float, float]:
        """First and second derivative in a: sum_i (E_q l - E_p* l) and sum_i Var_q l."""
        first = torch.zeros((), dtype=torch.float64, device=self.logits.device)
        second = torch.zeros_like(first)
        means = self.mean.split(rows_of(self.logits))
        for some, target in zip(chunks(self.logits), means, strict=True):
            wide = some.double()
            weight = (scale * wide).log_softmax(-1).exp()
            mean = (weight * wide).sum(-1)
            first += (mean - target).sum()
            second += (weight * (wide - mean[:, None]).square()).sum()
        return float(first), float(second)

    def fit(self) -> float | None:
        """The a that minimises KL, by bracketed Newton's method; None if outside [LEAST, MOST].

        1 if every a is equally good: there are no positions, or no distribution changes with a.
        """
        low, high, scale = LEAST, MOST, 1.0
        if not len(self.mean) or self.slopes(1.0)[1] == 0:
            return 1.0
        if self.slopes(low)[0] > 0 or self.slopes(high)[0] < 0:
            return None
        for _ in range(STEPS):
            first, second = self.slopes(scale)
            low, high = (scale, high) if first < 0 else (low, scale)
            change = first / second if second > 0 else 0.0
            if abs(first) <= STEP * second or high - low <= STEP:
                break
            step = scale - change
            scale = step if low < step < high else (low + high) / 2
        return scale


def chunks(values: Tensor) -> tuple[Tensor, ...]:
    """Split rows of [M, V] into parts of at most `FLOATS` values."""
    return values.split(rows_of(values)) if len(values) else ()


def rows_of(values: Tensor) -> int:
    """Rows of [M, V] that are processed at a time."""
    return max(1, FLOATS // values.shape[-1])
